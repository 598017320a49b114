"""The site as bytes, kept in the store: history is replayed with the site that was in force."""

import zlib

import msgspec
from msgspec import Struct

from edge_agent.core.errors import JournalError, SiteError
from edge_agent.core.prewarm_limits import PrewarmLimits
from edge_agent.core.site import Device, DeviceClass, Feeder, Limits, Site

SITE_VERSION = 1
SITE_BYTES_MAX = 64 << 20


class SiteFile(Struct, frozen=True, kw_only=True):
    """Stored form of a site; ``program`` is the version of the agent that decides on it."""

    version: int
    program: str
    site_id: str
    classes: tuple[DeviceClass, ...]
    devices: tuple[Device, ...]
    limits: Limits
    feeders: tuple[Feeder, ...] = ()
    prewarm: PrewarmLimits | None = None


_DECODER = msgspec.msgpack.Decoder(SiteFile)


def encode_site(site: Site, program: str) -> bytes:
    """Encode a site; equal sites and programs give equal bytes."""
    body = SiteFile(
        version=SITE_VERSION,
        program=program,
        site_id=site.site_id,
        classes=site.classes,
        devices=site.devices,
        limits=site.limits,
        feeders=site.feeders,
        prewarm=site.prewarm,
    )
    return zlib.compress(msgspec.msgpack.encode(body), level=6)


def decode_site(data: bytes) -> tuple[Site, str]:
    """Decode a site, and the version of the agent that decided on it.

    Raises:
        JournalError: the bytes are no site of a known version.
    """
    try:
        unpacked = zlib.decompressobj().decompress(data, SITE_BYTES_MAX)
        body = _DECODER.decode(unpacked)
        if body.version != SITE_VERSION:
            raise JournalError("site_version", f"version {body.version} is not known")
        site = Site(
            body.site_id, body.classes, body.devices, body.limits, body.feeders, body.prewarm
        )
        return site, body.program
    except (msgspec.MsgspecError, ValueError, zlib.error, SiteError) as exc:
        raise JournalError("bad_site", str(exc)) from exc
