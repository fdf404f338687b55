"""What goes wrong between client and server, by whether trying again may help.

A failure is never a score: a search would take it for a bad picture and throw the particle away.
"""

RETRIED = (408, 429, 502, 503, 504)
"""HTTP statuses after which the same request may be answered: busy, starting, or out of reach."""
OTHER_VERSION = 409
"""HTTP status of a server whose reward is not of the version that was asked for."""
ENVIRONMENT = "FLOWSDE_REWARD_TOKEN"
"""Environment variable of the bearer token, for client and server."""


class Problem(Exception):
    """Why a server does not answer a request.

    Attributes:
      status: of HTTP.
      retry_after: seconds after which to try again, or None.
    """

    def __init__(self, status: int, detail: str, retry_after: int | None = None):
        super().__init__(detail)
        self.status, self.retry_after = status, retry_after


class RemoteError(RuntimeError):
    """A remote reward gave no scores, and the same request would give none again."""


class OtherVersion(RemoteError):
    """A server's reward has another version than the one that was begun with."""


class Unavailable(RemoteError):
    """A server gave no scores this time.

    Attributes:
      retry_after: seconds that it asked to wait, or 0.
    """

    def __init__(self, detail: str, retry_after: float = 0.0):
        super().__init__(detail)
        self.retry_after = retry_after
