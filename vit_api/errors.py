"""Every failure that a client can see: its HTTP status and its stable code.

Knows nothing of how a failure reaches the client; `web.responses` alone turns it into a response.
"""

from __future__ import annotations


class ViTError(Exception):
    """A failure with a status and a code that clients may rely on.

    Args:
        message: What is wrong with which input, and what to do: sentences with a capital and a full stop.

    Attributes:
        status: The HTTP status.
        code: A stable, machine-readable name; clients may switch on it.
        retry_after_s: Seconds after which to retry; None if a retry is pointless.
    """

    status = 500
    code = "internal"
    retry_after_s: int | None = None

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def about(self, what: str) -> ViTError:
        """Return a copy that says which input failed; not this object, which several requests may share."""
        message = f"{what}: {self.message}"
        same = type(self).__new__(type(self), message)
        vars(same).update(vars(self), message=message)
        return same

    def headers(self) -> dict[str, str]:
        """Return the response headers of this failure."""
        return {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}


class BadRequest(ViTError):
    """The request is malformed: its multipart, JSON, base64 or a parameter."""

    status = 400
    code = "bad_request"


class BadImage(ViTError):
    """The upload has a supported format but can't be decoded: corrupt or truncated."""

    status = 400
    code = "bad_image"


class EmptyUpload(ViTError):
    """The request has no image, or an empty one."""

    status = 400
    code = "empty_upload"


class Unauthorized(ViTError):
    """The request has no key, or an invalid one."""

    status = 401
    code = "unauthorized"

    def __init__(self, message: str, *, is_wrong: bool) -> None:
        super().__init__(message)
        self._is_wrong = is_wrong

    def headers(self) -> dict[str, str]:
        """Name the scheme, and whether the key was invalid; see RFC 6750, section 3."""
        challenge = 'Bearer realm="vit-api"'
        return {"www-authenticate": f'{challenge}, error="invalid_token"' if self._is_wrong else challenge}


class Forbidden(ViTError):
    """The server does not allow this to any client."""

    status = 403
    code = "forbidden"


class BodyTimeout(ViTError):
    """The request body did not arrive in time."""

    status = 408
    code = "body_timeout"


class HeadTimeout(ViTError):
    """The request line and the headers did not arrive in time."""

    status = 408
    code = "header_timeout"


class NotFound(ViTError):
    """There is no such path or model."""

    status = 404
    code = "not_found"


class MethodNotAllowed(ViTError):
    """The path exists, but not with this method."""

    status = 405
    code = "method_not_allowed"


class UploadTooLarge(ViTError):
    """The body exceeds the maximum size."""

    status = 413
    code = "upload_too_large"

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"The upload exceeds the maximum of {max_bytes / 2**20:.4g} MiB. Send a smaller image.")


class ImageTooLarge(ViTError):
    """The image has more pixels than the maximum, by its header."""

    status = 413
    code = "image_too_large"


class UriTooLong(ViTError):
    """The request line exceeds the maximum size."""

    status = 414
    code = "uri_too_long"


class ExpectationFailed(ViTError):
    """The client expects something else than `100 Continue`."""

    status = 417
    code = "expectation_failed"


class HeadersTooLarge(ViTError):
    """The headers or trailers exceed their maximum size or number."""

    status = 431
    code = "headers_too_large"


class UnsupportedImage(ViTError):
    """The upload is not an image of a supported format."""

    status = 415
    code = "unsupported_image"


class UnsupportedOutput(ViTError):
    """The model has no output of the requested kind, such as an embedding."""

    status = 400
    code = "unsupported_output"


class UnsupportedEncoding(ViTError):
    """The body has a content encoding that is not supported."""

    status = 415
    code = "unsupported_encoding"

    def headers(self) -> dict[str, str]:
        """Say which encodings are supported; see RFC 9110, section 15.5.16."""
        return {"accept-encoding": "gzip, deflate"}


class RateLimited(ViTError):
    """The client has exceeded its rate limit."""

    status = 429
    code = "rate_limited"

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class InternalError(ViTError):
    """A bug in the server; its log has the details."""


class InferenceFailed(ViTError):
    """The model failed on this image."""

    status = 500
    code = "inference_failed"


class UnsupportedTransfer(ViTError):
    """The body has a transfer encoding other than chunked; see RFC 9112, section 6.1."""

    status = 501
    code = "unsupported_transfer"


class UnsupportedVersion(ViTError):
    """The version of HTTP is neither 1.1 nor 1.0."""

    status = 505
    code = "unsupported_version"


class OutOfDeviceMemory(ViTError):
    """The device has not enough free memory to run the model."""

    status = 503
    code = "out_of_memory"
    retry_after_s = 5


class WorkersGone(ViTError):
    """The workers of the model crashed and can't be restarted; with one model, the server is shutting down."""

    status = 503
    code = "workers_gone"
    retry_after_s = 10


class Overloaded(ViTError):
    """The queue is full, or the memory for uploads is used up."""

    status = 503
    code = "overloaded"

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotReady(ViTError):
    """No worker is ready yet."""

    status = 503
    code = "not_ready"
    retry_after_s = 5


class LoadFailed(ViTError):
    """A model can't be loaded; nothing has changed."""

    status = 409
    code = "load_failed"


class RedisUnavailable(ViTError):
    """Redis can't be reached or refuses, and is required for this."""

    status = 503
    code = "redis_unavailable"
    retry_after_s = 5


class DeadlineExceeded(ViTError):
    """The request was not answered within its time limit."""

    status = 504
    code = "deadline_exceeded"


def error_classes() -> list[type[ViTError]]:
    """Return every class of error."""
    kinds, found = [ViTError], []
    while kinds:
        kind = kinds.pop()
        found.append(kind)
        kinds += kind.__subclasses__()
    return found
