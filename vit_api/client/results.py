"""What a classification comes to, for those who asked for it: a result or an error. Knows nothing of how it is had."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prediction:
    """One class and how sure the model is of it.

    Attributes:
        label: The class's name.
        confidence: Its probability, 0 to 1.
    """

    label: str
    confidence: float


@dataclass(frozen=True)
class Classification:
    """What the model says of one image.

    Attributes:
        predictions: The most probable classes, most probable first; at least one.
        cached: Whether it was remembered, so that the model did not run.
        processing_time_ms: From the request's arrival at the server to the answer.
        model: The model's name.
        request_id: Names the request in the server's log; None without a server.
        source: `hit`, `miss` or `coalesced`, as the README explains `x-cache`; None if the server did not say.
        queue_time_ms: How long the image waited for its batch; None unless this request had the model run.
        inference_time_ms: How long its batch took; None unless this request had the model run.
        batch_size: Images in its batch; None unless this request had the model run.
    """

    predictions: tuple[Prediction, ...]
    cached: bool
    processing_time_ms: float
    model: str
    request_id: str | None = None
    source: str | None = None
    queue_time_ms: float | None = None
    inference_time_ms: float | None = None
    batch_size: int | None = None

    @property
    def top(self) -> Prediction:
        """The most probable class."""
        return self.predictions[0]


class ClassifyError(Exception):
    """An image got no classification; the root of all errors that come of images, servers and networks.

    Attributes:
        message: What is wrong, in the server's words if it had any.
        code: A stable name for programs: the server's, `http_<status>` for an answer that has none, or the class's.
        status: The HTTP status; None if there was no answer.
        request_id: Names the request in the server's log; None if the answer did not say.
    """

    code = "failed"

    def __init__(
        self, message: str, *, code: str | None = None, status: int | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.code
        self.status = status
        self.request_id = request_id

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle all of it: an exception's own way knows the message alone."""
        return type(self), (self.message,), vars(self)


class UnreadableInput(ClassifyError):
    """The image could not be read or encoded here; nothing was sent."""

    code = "unreadable_input"


class Unreachable(ClassifyError):
    """There is no connection to the server, or it broke before the answer."""

    code = "unreachable"


class TimedOut(ClassifyError):
    """The answer did not come within the client's time limits."""

    code = "timed_out"


class Rejected(ClassifyError):
    """The server refused the request (4xx): the same request will be refused again."""

    code = "rejected"


class Busy(ClassifyError):
    """The server has no room, or the client asks too often (503, 429), and the tries or the time are used up.

    Attributes:
        retry_after_s: Seconds after which the server would like to be asked again; None if it did not say.
    """

    code = "busy"
    retry_after_s: float | None = None


class ServerFailed(ClassifyError):
    """The server failed (5xx but 503)."""

    code = "server_failed"


class UnexpectedAnswer(ClassifyError):
    """The answer is not one of this API: a redirect, another server's page, a damaged body."""

    code = "unexpected_answer"


Outcome = Classification | ClassifyError
"""What becomes of one image among many."""
