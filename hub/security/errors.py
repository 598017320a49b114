"""Errors of tokens and passwords."""

from hub.errors import HubError


class TokenError(HubError):
    """A token that proves nothing: malformed, forged, expired or made by somebody else."""


class TooManyPasswordsError(HubError):
    """More passwords wait to be checked than this machine should work on."""
