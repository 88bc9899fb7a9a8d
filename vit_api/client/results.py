"""The outcomes of a classification: a result or an error. Knows nothing of how they are obtained."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ScoredLabel:
    """A class and its probability.

    Attributes:
        label: The class's name.
        confidence: Its probability, from 0 to 1.
        flagged: Whether that is at or above the label's threshold; None if the server has no thresholds.
    """

    label: str
    confidence: float
    flagged: bool | None = None


@dataclass(frozen=True)
class ClassifiedFrame:
    """The result for one frame of an animation, or one page of a document.

    Attributes:
        index: Its position among all frames, from 0.
        time_ms: When it is shown, from the start; None for pages, which have no time.
        predictions: Its most probable classes, most probable first.
    """

    index: int
    time_ms: float | None
    predictions: tuple[ScoredLabel, ...]


@dataclass(frozen=True)
class Classification:
    """The result for one image.

    Attributes:
        predictions: The most probable classes, most probable first; at least one unless there is a minimum probability.
            Of several frames, each class has its largest probability.
        cached: Whether the result came from the cache, without running the model.
        processing_time_ms: Time from the request's arrival at the server to the response.
        model: The model's name.
        request_id: Identifies the request in the server's log; None without a server.
        source: The response's `x-cache`: `hit`, `miss` or `coalesced`; None if it has none.
        queue_time_ms: Time that the image waited for its batch; None unless this request ran the model.
        inference_time_ms: Time that its batch took; None unless this request ran the model.
        batch_size: Images in its batch; None unless this request ran the model.
        frames: The frames one by one, if several were requested.
        flagged: Whether any label of the model is flagged, returned or not; None if the server has no thresholds.
        thresholds_digest: Identifies the thresholds; None if there are none.
    """

    predictions: tuple[ScoredLabel, ...]
    cached: bool
    processing_time_ms: float
    model: str
    request_id: str | None = None
    source: str | None = None
    queue_time_ms: float | None = None
    inference_time_ms: float | None = None
    batch_size: int | None = None
    frames: tuple[ClassifiedFrame, ...] = ()
    flagged: bool | None = None
    thresholds_digest: str | None = None

    @property
    def top(self) -> ScoredLabel:
        """The most probable class.

        Raises:
            IndexError: No class has the requested probability.
        """
        return self.predictions[0]


class ClassifyError(Exception):
    """An image could not be classified; the base class of all errors of images, servers and networks.

    Attributes:
        message: What is wrong; the server's message if it sent one.
        code: A stable name for programs: the server's, `http_<status>` for a response without one, or the class's.
        status: The HTTP status; None if there was no response.
        request_id: Identifies the request in the server's log; None if the response has none.
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
        """Pickle all attributes: an exception's default keeps only the message."""
        return type(self), (self.message,), vars(self)


class UnreadableInput(ClassifyError):
    """The image could not be read or encoded; nothing was sent."""

    code = "unreadable_input"


class Unreachable(ClassifyError):
    """The connection to the server failed, or broke before the response was complete."""

    code = "unreachable"


class TimedOut(ClassifyError):
    """The response did not arrive within the client's time limits."""

    code = "timed_out"


class Rejected(ClassifyError):
    """The server rejected the request (4xx); the same request would be rejected again."""

    code = "rejected"


class Busy(ClassifyError):
    """The server is overloaded or limits the client's rate (503, 429), and no attempts or time are left.

    Attributes:
        retry_after_s: The server's last `Retry-After`, in seconds; None if it sent none.
    """

    code = "busy"
    retry_after_s: float | None = None


class ServerFailed(ClassifyError):
    """The server failed (5xx other than 503)."""

    code = "server_failed"


class UnexpectedAnswer(ClassifyError):
    """The response is not one of this API: a redirect, another server's page, a malformed body."""

    code = "unexpected_answer"


Outcome = Classification | ClassifyError
"""The outcome for one image of many."""
