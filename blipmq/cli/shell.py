"""`blipmq connect HOST:PORT`: an interactive shell. Type commands; messages appear above the line being typed.

It has two threads, because reading a line with history blocks: the main thread reads lines, the worker owns the client.
Invariant: after the worker has started, only the worker uses the client. A line is handed over, and the next one is
read when it is done.
"""

from __future__ import annotations

import argparse
import os
import queue
import selectors
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping

from blipmq.base.stdio import StreamError, is_terminal, read_in, say, take_descriptors, write_out
from blipmq.cli import render
from blipmq.cli.access import find_tls, read_key
from blipmq.cli.line_editor import History, LineEditor, Vocabulary, history_path
from blipmq.cli.publish import read_lines as read_whole_lines
from blipmq.client.blocking import BlockingClient, BlockingSubscription
from blipmq.client.trust import Tls
from blipmq.errors import BlipMQError, UsageError

PROMPT = "blipmq> "
HELP = """\
pub TOPIC [TTL] TEXT   publish TEXT; it expires after TTL milliseconds, if given
sub TOPIC              show messages of a topic or filter: a.* a.> (dots), a/+ a/# (slashes)
unsub TOPIC            stop showing them
help                   this list
exit                   leave (so does Ctrl-D)

Tab completes commands and topics that were seen, the arrow keys bring back lines, those of earlier sessions too. A line
that begins with a space is not kept.
"""
VERBS = ("pub", "sub", "unsub", "help", "exit")
TIMEOUT_S = 5.0
SUBSCRIPTIONS_MAX = 256
INTERRUPTED = 130


class Screen:
    """Standard output, shared by the line being typed and the messages that arrive meanwhile."""

    def __init__(self, *, fancy: bool, typing: Callable[[], str] | None) -> None:
        self.fancy = fancy
        self._typing = typing
        self._lock = threading.Lock()
        self._prompting = False
        self._silent = False
        self.status = 0
        """The exit status of a failed output."""

    def read_line(self, read: Callable[[str], str]) -> str:
        """Show the prompt and read a line. Raises EOFError and KeyboardInterrupt as input() does."""
        with self._lock:
            self._prompting = True
        try:
            return read(PROMPT if self._typing else "")
        finally:
            with self._lock:
                self._prompting = False

    def show(self, data: bytes) -> None:
        """Write whole lines, above the prompt if there is one. A failed write is reported once, and nothing more is
        written."""
        with self._lock:
            above = self._typing is not None and self._prompting
            if above and self._typing is not None:
                data = b"\r\x1b[K" + data + (PROMPT + self._typing()).encode("utf-8", "replace")
            try:
                if not self._silent:
                    write_out(data)
            except BrokenPipeError:
                self._silent = True
            except StreamError as error:
                self._silent, self.status = True, error.exit_status
                say(f"blipmq connect: {error} The commands still run.")

    def say(self, emoji: str, text: str) -> None:
        text = render.printable(text.encode("utf-8", "backslashreplace"))
        self.show((f"{emoji} {text}\n" if self.fancy else f"{text}\n").encode())

    def fail(self, error: BlipMQError) -> None:
        """Show an error: on the screen in interactive use, in a script on standard error."""
        if self._typing is not None:
            self.say("❌", str(error))
        else:
            say(f"blipmq connect: {error}")


class Worker(threading.Thread):
    """Owns the client: runs lines, shows messages, handles outages."""

    def __init__(self, address: str, api_key: str, tls: Tls, screen: Screen, vocabulary: Vocabulary) -> None:
        super().__init__(name="blipmq-shell", daemon=True)
        self.status = 0
        """The exit status of the first command that failed, or of the error that ended the client."""
        self.ended = False
        self._screen, self._vocabulary = screen, vocabulary
        self._render = render.message_renderer(quiet=False, json=False, fancy=screen.fancy)
        self._lines: queue.SimpleQueue[tuple[str, threading.Event]] = queue.SimpleQueue()
        self._wake, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._subscriptions: dict[str, BlockingSubscription] = {}
        self._client = BlockingClient(
            address,
            api_key=api_key,
            tls=tls,
            timeout_s=TIMEOUT_S,
            on_state=render.ReconnectNotices(screen.say),
            on_refusal=self._failed,
            sleep=lambda delay_s: self._wait(delay_s, None),
        )
        self.address = self._client.address

    def connect(self, wait_s: float) -> None:
        """Make the first connection, before start(), within `wait_s` seconds. Raises Unreachable, NotAllowed and so on."""
        try:
            self._client.open(wait=wait_s)
        except BaseException:
            self._close_wake()
            raise

    def submit(self, line: str) -> None:
        """Called by the main thread: run a line and wait until it is done."""
        done = threading.Event()
        self._lines.put((line, done))
        self._wake.send(b"\0")
        while not done.wait(0.2):
            if not self.is_alive():
                return

    def run(self) -> None:
        try:
            while self._turn():
                pass
            self._client.close()
        except BlipMQError as error:
            self._failed(error)
            self.ended = True
            _interrupt_main()
        finally:
            self._client.abort()
            self._close_wake()

    def _close_wake(self) -> None:
        self._wake.close()
        self._woken.close()

    def _turn(self) -> bool:
        """Wait for a line or a message, and process it. Returns False when the shell should end."""
        descriptor = self._client.fileno()
        if descriptor >= 0:
            self._wait(None, descriptor)
        going = True
        while going and not self._lines.empty():
            line, done = self._lines.get()
            going = self._run_line(line)
            done.set()
        if going:
            # Without a connection, poll waits for its back-off and makes one attempt; a submitted line ends the wait
            self._client.poll(0.0 if self._client.fileno() >= 0 else 60.0)
            self._show_messages()
        return going

    def _wait(self, timeout_s: float | None, descriptor: int | None) -> None:
        """Wait until a line is submitted, the descriptor is readable, or the time is over."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            if descriptor is not None:
                selector.register(descriptor, selectors.EVENT_READ)
            if any(key.fileobj is self._woken for key, _ in selector.select(timeout_s)):
                self._woken.recv(4096)

    def _show_messages(self) -> None:
        for filter_, subscription in list(self._subscriptions.items()):
            if subscription.messages:
                messages = subscription.pop_all()
                for topic in {message.topic for message in messages}:
                    self._vocabulary.saw_topic(topic)
                self._screen.show(self._render(messages))
            if subscription.ended:
                del self._subscriptions[filter_]
                self._vocabulary.subscribed(self._subscriptions)
                if subscription.error is not None:
                    self._failed(subscription.error)

    def _failed(self, error: BlipMQError) -> None:
        self.status = self.status or error.exit_status
        self._screen.fail(error)

    # ---- commands ----

    def _run_line(self, line: str) -> bool:
        verb, _, rest = line.strip().partition(" ")
        commands = {"pub": self._publish, "sub": self._subscribe, "unsub": self._unsubscribe, "help": self._help}
        try:
            if verb in ("exit", "quit"):
                if self._client.state == "connected":
                    self._client.ping()  # messages on their way arrive before the answer
                    self._show_messages()
                return False
            if verb:
                if verb not in commands:
                    raise UsageError(f"There is no command {verb!r}. Type help for the list.")
                commands[verb](rest.strip())
        except BlipMQError as error:
            if self._client.state == "closed":
                raise
            self._failed(error)
        self._show_messages()
        return True

    def _publish(self, rest: str) -> None:
        topic, _, text = rest.partition(" ")
        text = text.lstrip(" ")
        first, space, after = text.partition(" ")
        ttl_ms = 0
        if space and first.isascii() and first.isdigit():
            ttl_ms, text = int(first), after.lstrip(" ")
        if not topic or not text:
            raise UsageError("Usage: pub TOPIC [TTL] TEXT")
        payload = text.encode("utf-8", "surrogateescape")
        self._client.publish(topic, payload, ttl_ms=ttl_ms)
        try:
            self._client.flush()
        except BlipMQError as error:
            if not error.code:
                raise
            return  # on_refusal has reported it
        self._vocabulary.saw_topic(topic)
        expiry = f", expires in {ttl_ms:,} ms" if ttl_ms else ""
        self._screen.say("📤", f"Sent {render.bytes_text(len(payload))} to {topic}{expiry}.")

    def _subscribe(self, filter_: str) -> None:
        if not filter_:
            raise UsageError("Usage: sub TOPIC")
        if filter_ in self._subscriptions:
            raise UsageError(f"This shell is already subscribed to {filter_}.")
        if len(self._subscriptions) >= SUBSCRIPTIONS_MAX:
            raise UsageError(f"A shell may have at most {SUBSCRIPTIONS_MAX} subscriptions. End one first: unsub TOPIC")
        self._subscriptions[filter_] = self._client.subscribe(filter_)
        self._vocabulary.subscribed(self._subscriptions)
        self._screen.say("✅", f"Subscribed to {filter_}.")

    def _unsubscribe(self, filter_: str) -> None:
        subscription = self._subscriptions.pop(filter_, None)
        if subscription is None:
            raise UsageError(
                f"{filter_ or 'Nothing'} is not subscribed. Subscribed: {', '.join(self._subscriptions) or 'nothing'}."
            )
        self._vocabulary.subscribed(self._subscriptions)
        subscription.close()
        self._screen.say("✅", f"Unsubscribed from {filter_}.")

    def _help(self, rest: str) -> None:
        self._screen.show(HELP.encode())


def _interrupt_main() -> None:
    """Interrupt the main thread while it reads a line."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def plain_reader() -> Callable[[str], str]:
    """Return a function that reads lines from standard input, whatever it is."""

    def lines() -> Iterator[bytes]:
        for batch in read_whole_lines(read_in):
            yield from batch

    rest = lines()

    def read(prompt: str) -> str:
        line = next(rest, None)
        if line is None:
            raise EOFError
        return line.decode("utf-8", "surrogateescape")

    return read


def read_lines(worker: Worker, screen: Screen, read: Callable[[str], str], *, interactive: bool) -> int:
    """Read and run lines until exit, the end of input, or the end of the client; returns the exit status."""
    while worker.is_alive():
        try:
            line = screen.read_line(read)
        except UnicodeDecodeError:
            screen.fail(UsageError("The line is not UTF-8. Check the encoding of the terminal."))
            continue
        except BlipMQError as error:  # the input cannot be read
            screen.fail(error)
            screen.status = error.exit_status
            line = "exit"
        except EOFError:
            line = "exit"
            if interactive:
                screen.show(b"\n")
        except KeyboardInterrupt:
            if worker.ended:
                break
            if not interactive:
                return INTERRUPTED
            screen.show(b"\n")
            continue
        worker.submit(line)
        if line.strip() in ("exit", "quit"):
            worker.join(TIMEOUT_S * 2)
            break
    return screen.status or (0 if interactive and not worker.ended else worker.status)


def main(
    argv: list[str], environment: Mapping[str, str] | None = None, options: argparse.Namespace | None = None
) -> int:
    """Run the shell. `argv` has one address, `options` those for the key and TLS. Returns the exit status; errors go to
    standard error."""
    take_descriptors()
    environment = os.environ if environment is None else environment
    interactive = is_terminal(sys.stdin) and is_terminal(sys.stdout)
    fancy = render.is_fancy(sys.stdout, environment)
    vocabulary = Vocabulary(VERBS)
    editor = LineEditor(History(history_path(environment)), vocabulary) if interactive else None
    screen = Screen(fancy=fancy, typing=editor.typed if editor else None)
    try:
        (address,) = argv
        access = options or argparse.Namespace(
            addr=address, key_file=None, tls=False, ca_file=None, cert=None, cert_key=None, wait=0
        )
        tls = find_tls(access, environment)
        worker = Worker(address, read_key(access, environment), tls, screen, vocabulary)
        worker.connect(access.wait)
    except BlipMQError as error:
        prefix = "❌ " if render.is_fancy(sys.stderr, environment) else "blipmq connect: "
        say(f"{prefix}{error}")
        return error.exit_status
    except KeyboardInterrupt:
        return INTERRUPTED
    if interactive:
        screen.say("✅", f"Connected to {worker.address}. Type help for the commands.")
    worker.start()
    return read_lines(worker, screen, editor.read if editor else plain_reader(), interactive=interactive)
