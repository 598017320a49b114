"""The telemetry child: the only process of the agent that calls NVML to read.

A call into the driver can hang for ever, and neither a thread nor a task that hangs in C can be
stopped; a process can be killed. Within the child each card has a thread of its own, so that one
that hangs keeps only its own card from being read. The main thread calls nothing of NVML: it beats,
telling in which call each thread is, and writes. The child ends when its standard input does.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import BinaryIO, Final

import msgspec
from msgspec import Struct, structs

from firmware_bridges.nvml.errors import (
    NvmlCallError,
    NvmlError,
    NvmlGoneError,
    NvmlGpuLostError,
    NvmlResetRequiredError,
)
from firmware_bridges.nvml.events import EventWatch
from firmware_bridges.nvml.library import DETAIL_MAX, GPU_NOT_FOUND, Nvml
from firmware_bridges.nvml.outbox import Outbox
from firmware_bridges.nvml.pipe import TO_CHILD, Unpacker, pack
from firmware_bridges.nvml.reader import CardReader
from firmware_bridges.nvml.samples import (
    AskProcesses,
    Beat,
    Failed,
    FaultKind,
    FromChild,
    GpuFault,
    GpuProcess,
    Hello,
    Processes,
    Row,
    Worker,
)
from protocol.errors import DecodeError

NS_PER_S: Final = 1_000_000_000
BEAT_S: Final = 0.25
# A lost card is asked again, but not each second: a reset takes longer, and each try may block.
LOST_RETRY_SWEEPS: Final = 10
ASKED_MAX: Final = 8
READ_BYTES: Final = 4_096
EXIT_GONE: Final = 3


class ChildOptions(Struct, frozen=True, kw_only=True):
    """How a child is started.

    Args:
        period_s: of the sweep. cards: whom to read, by UUID or ``index:N``; None: all there are.
        events: tell events too; one child at a time does.
    """

    period_s: float = 1.0
    cards: tuple[str, ...] | None = None
    events: bool = True


def boottime_ns() -> int:
    """Give CLOCK_BOOTTIME in nanoseconds."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class CardWorker:
    """The thread of one card.

    Args:
        place: in the list of cards. card: UUID or ``index:N``. phase: of its sweeps, above 0 and
            at most 1, in periods.
    """

    def __init__(
        self, place: int, card: str, phase: float, options: ChildOptions, outbox: Outbox
    ) -> None:
        self._period_ns = round(options.period_s * NS_PER_S)
        self._outbox = outbox
        self._nvml = Nvml(boottime_ns)
        self._asked: list[AskProcesses] = []
        self._woken = threading.Condition()
        self._reader: CardReader | None = None
        # the event set that tells this card's events; None: none does
        self._registered: object = None
        self._place = place
        self._phase = phase
        named, _, index = card.partition("index:")
        self._index = place if named else int(index)
        self.uuid = named or None

    def state(self) -> Worker:
        """Tell what the thread is doing; called by another thread."""
        call, since_ns = self._nvml.under_way or (None, None)
        return Worker(self._place, self.uuid, call, since_ns)

    def ask(self, request: AskProcesses) -> None:
        """Have the card's thread answer; too many requests are answered with nothing."""
        with self._woken:
            if len(self._asked) < ASKED_MAX:
                self._asked.append(request)
                self._woken.notify()
                return
        self._outbox.answer(_no_processes(request, "too many requests"))

    def run(self, watch: EventWatch | None, gone: Callable[[NvmlGoneError], None]) -> None:
        """Sweep for ever; ends when the driver is gone."""
        # the cards' sweeps are spread over the period: they wait for one lock of the driver, and
        # whose call hangs is seen by which began first
        due_ns = boottime_ns() - round(self._period_ns * (1.0 - self._phase))
        try:
            while True:
                row = self._row()
                self._outbox.row(self._place, row)
                if watch is not None:
                    self._register(watch)
                sweeps = LOST_RETRY_SWEEPS if isinstance(row, GpuFault) else 1
                for left in range(sweeps, 0, -1):
                    due_ns = max(due_ns + self._period_ns, boottime_ns())
                    self._wait_until(due_ns)
                    if left > 1:
                        self._outbox.row(self._place, structs.replace(row, at_ns=boottime_ns()))
        except NvmlGoneError as exc:
            gone(exc)

    def _register(self, watch: EventWatch) -> None:
        """Have this card's events told, once it has been read; a failure is tried again."""
        if self._reader is None or (self._registered and watch.knows(self._registered)):
            return
        try:
            self._registered = watch.register(
                self._nvml, self._reader.handle, self._reader.info.uuid
            )
        except NvmlGoneError:
            raise
        except NvmlError:
            return

    def _row(self) -> Row:
        try:
            if self._reader is None:
                self._reader = CardReader(self._nvml, self._handle(), self._index, boottime_ns)
                self.uuid = self._reader.info.uuid
            return self._reader.sample()
        except NvmlGoneError:
            raise
        except NvmlResetRequiredError as exc:
            return self._fault(FaultKind.RESET_REQUIRED, exc)
        except NvmlError as exc:
            # it is looked for anew by its UUID: a handle may have become another card's
            self._reader = self._registered = None
            lost = isinstance(exc, NvmlGpuLostError)
            return self._fault(FaultKind.LOST if lost else FaultKind.UNREADABLE, exc)
        except Exception as exc:  # noqa: BLE001 - a thread that ends would leave its card silent for ever
            self._reader = self._registered = None
            print(f"telemetry child: card {self._place}: {exc!r}", file=sys.stderr)  # noqa: T201 - stderr is its log
            return self._fault(FaultKind.UNREADABLE, exc)

    def _handle(self) -> object:
        if self.uuid is not None:
            return self._nvml.call("nvmlDeviceGetHandleByUUID", self.uuid)
        return self._nvml.call("nvmlDeviceGetHandleByIndex", self._index)

    def _fault(self, kind: FaultKind, exc: Exception) -> GpuFault:
        return GpuFault(
            index=self._place,
            uuid=self.uuid,
            at_ns=boottime_ns(),
            kind=kind,
            detail=str(exc)[:DETAIL_MAX],
        )

    def _wait_until(self, due_ns: int) -> None:
        """Wait for the next sweep, answering what is asked meanwhile."""
        while True:
            with self._woken:
                left_ns = due_ns - boottime_ns()
                if left_ns <= 0:
                    return
                if not self._asked:
                    self._woken.wait(left_ns / NS_PER_S)
                asked, self._asked = self._asked, []
            for request in asked:
                self._outbox.answer(self._answer(request))

    def _answer(self, request: AskProcesses) -> Processes:
        if self._reader is None:
            return _no_processes(request, "the card is not readable")
        try:
            found: tuple[GpuProcess, ...] = self._reader.processes()
        except NvmlGoneError:
            raise
        except NvmlError as exc:
            return _no_processes(request, str(exc))
        return Processes(
            request=request.request, uuid=request.uuid, at_ns=boottime_ns(), processes=found
        )


class Child:
    """All threads of the child.

    Args:
        requests: where the parent's requests come from. frames: where the messages go.
    """

    def __init__(self, options: ChildOptions, requests: BinaryIO, frames: BinaryIO) -> None:
        self._options = options
        self._requests = requests
        self._frames = frames
        self._outbox = Outbox()
        self._workers: list[CardWorker] = []
        self._stop = threading.Event()
        self._watch: EventWatch | None = None
        self._failed: Failed | None = None

    def run(self) -> int:
        """Run until the parent is gone or the driver is; give the exit code."""
        _start("requests", self._take_requests)
        nvml = Nvml(boottime_ns)
        try:
            nvml.open()
            hello = _hello(nvml)
            if not hello.gpus and self._options.cards is None:
                # a driver counts its cards when it is opened: only a later child finds any
                self._write(Failed(code=GPU_NOT_FOUND, detail="the driver has no card"))
                return EXIT_GONE
            self._watch = watch = self._event_watch() if self._options.events else None
        except NvmlError as exc:
            self._write(Failed(code=exc.nvml_code, detail=str(exc)))
            return EXIT_GONE
        self._write(hello)
        cards = self._options.cards
        if cards is None:
            cards = tuple(f"index:{index}" for index in range(hello.gpus))
        self._workers = [
            CardWorker(place, card, (place + 1) / len(cards), self._options, self._outbox)
            for place, card in enumerate(cards)
        ]
        for place, worker in enumerate(self._workers):
            _start(f"card-{place}", partial(worker.run, watch, self._gone))
        self._beat_and_write()
        return EXIT_GONE

    def _event_watch(self) -> EventWatch | None:
        watch = EventWatch(
            Nvml(boottime_ns), self._outbox, boottime_ns, stop=self._stop, gone=self._gone
        )
        if not watch.open():
            return None
        _start("events", watch.run)
        return watch

    def _beat_and_write(self) -> None:
        every_ns = round(min(BEAT_S, self._options.period_s) * NS_PER_S)
        seq, due_ns = 0, boottime_ns()
        while not self._stop.is_set():
            now_ns = boottime_ns()
            if now_ns >= due_ns:
                due_ns = now_ns + every_ns
                self._outbox.beat(
                    Beat(
                        seq=seq,
                        at_ns=now_ns,
                        workers=tuple(worker.state() for worker in self._workers),
                        events_call_ns=None if self._watch is None else self._watch.since_ns(),
                        events_lost=self._outbox.events_lost,
                    )
                )
                seq += 1
            self._write(*self._outbox.take((due_ns - now_ns) / NS_PER_S))
        self._write(*self._outbox.take(0.0))
        if self._failed is not None:
            self._write(self._failed)

    def _gone(self, exc: NvmlGoneError) -> None:
        self._failed = Failed(code=exc.nvml_code, detail=str(exc))
        self._stop.set()

    def _take_requests(self) -> None:
        """Pass requests on; the end of them ends the process, whatever its threads hang in."""
        unpacker = Unpacker(TO_CHILD)
        try:
            while data := os.read(self._requests.fileno(), READ_BYTES):
                for request in unpacker.feed(data):
                    self._pass_on(request)
        except (OSError, DecodeError) as exc:
            print(f"telemetry child: {exc}", file=sys.stderr)  # noqa: T201 - stderr is its log
        os._exit(0)

    def _pass_on(self, request: AskProcesses) -> None:
        for worker in self._workers:
            if worker.uuid == request.uuid:
                worker.ask(request)
                return
        self._outbox.answer(_no_processes(request, "no such card"))

    def _write(self, *messages: FromChild) -> None:
        if messages:
            self._frames.write(b"".join(pack(message) for message in messages))
            self._frames.flush()


def _hello(nvml: Nvml) -> Hello:
    try:
        driver: str | None = nvml.text("nvmlSystemGetDriverVersion")
    except NvmlCallError:
        driver = None
    return Hello(pid=os.getpid(), driver=driver, gpus=nvml.integer("nvmlDeviceGetCount"))


def _no_processes(request: AskProcesses, detail: str) -> Processes:
    return Processes(
        request=request.request,
        uuid=request.uuid,
        at_ns=boottime_ns(),
        processes=None,
        detail=detail,
    )


def _start(name: str, run: Callable[[], None]) -> None:
    # daemon: a thread that hangs in the driver must not keep the process from ending
    threading.Thread(target=run, name=name, daemon=True).start()


def main() -> None:
    """Run the child with the options in its first argument; never returns."""
    options = msgspec.json.decode(sys.argv[1], type=ChildOptions)
    frames = os.fdopen(os.dup(1), "wb")
    # whatever the driver's library prints must not end up between two frames
    os.dup2(2, 1)
    try:
        code = Child(options, sys.stdin.buffer, frames).run()
    except BrokenPipeError:
        code = 0
    # not sys.exit: that would run clean-ups that wait for whoever hangs
    os._exit(code)


if __name__ == "__main__":
    main()
