# SPDX-License-Identifier: Apache-2.0
"""A host for drivers: this machine, or a described or recorded one."""

from __future__ import annotations

import collections.abc
import contextlib
import difflib
import importlib.resources
import json
import os
import pathlib
import re
import selectors
import shutil
import signal
import subprocess
import time
import typing
import uuid

from cyborg_lite.driver import description
from cyborg_lite.driver import recording
from cyborg_lite.driver import sysfs

#: The maximum size of a tool's output, in bytes.
OUTPUT = 1 << 20
#: Directories of vendors' tools that the PATH of a service often lacks.
TOOL_DIRS = ('/usr/local/bin', '/usr/local/sbin')
#: Default UUIDs of firmware vendors, which many machines share. The first two are the same default
#: in the byte orders of SMBIOS before and since 2.6 (DSP0134, 7.2.1).
DEFAULT_UUIDS = frozenset(
    (
        '03000200-0400-0500-0006-000700080009',
        '00020003-0004-0005-0006-000700080009',
        '12345678-1234-5678-90ab-cddeefaabbcc',
        '12345678-1234-1234-1234-123456789abc',
        '01234567-89ab-cdef-0123-456789abcdef',
        '4c4c4544-0000-2010-8020-80c04f202020',
    )
)


class ToolError(Exception):
    """A vendor's tool exists but failed: the message names it and its error."""


class NoAnswer(ToolError):
    """A vendor's tool did not answer in time."""

    def __init__(self, asked: str, seconds: float) -> None:
        super().__init__(f'{asked}: no answer within {seconds:g} s')
        self.seconds = seconds


class Host:
    """A machine for its drivers: files below a root, and tools that print text."""

    def __init__(self, name: str, root: pathlib.Path, recorded: bool = True) -> None:
        self.name = name
        self.tree = sysfs.Tree(root)
        self.root = self.tree.root
        #: True if the files are a copy of another machine's, so that this machine must not be
        #: queried
        self.recorded = recorded
        #: the last output of tools, by tool and arguments: :mod:`recording` packs it
        self.outputs: dict[tuple[str, ...], str] = {}

    @classmethod
    def local(cls, name: str) -> Host:
        """This machine."""
        return cls(name, pathlib.Path('/'), recorded=False)

    @property
    def machine(self) -> str | None:
        """The machine's identity, which does not depend on its name; None if the host has none.

        It is the UUID of the mainboard if that is plausible, otherwise the machine id of the
        system. Source: sysfs-firmware-dmi of Linux; machine-id(5).
        """
        board = self._line('sys/class/dmi/id/product_uuid')
        if re.fullmatch(r'[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}', board) and _is_own(board):
            return board
        system = self._line('etc/machine-id')
        return system if re.fullmatch('[0-9a-f]{32}', system) and _is_own(system) else None

    def _line(self, path: str) -> str:
        content = self.tree.load(self.root / path, sysfs.LIMIT) or b''
        return content.decode('ascii', 'replace').strip().lower()

    def printed_at(self, tool: str) -> int:
        """The time of the last change of a tool's recorded output, in nanoseconds; 0 on this
        machine.

        A recording can change values that are constant on a running machine.
        """
        if not self.recorded:
            return 0
        place = self.root / description.output(tool, ()).parent
        files = [self.tree.inside(place / name) for name in self.tree.names(place)]
        return max((file.stat().st_mtime_ns for file in files if file), default=0)

    def run(self, tool: str, *args: str, timeout: float = 10.0) -> str | None:
        """The output of a tool, at most 1 MiB; None if the host does not have the tool.

        :param timeout: in seconds
        :raises ToolError: when it fails, prints more, or takes longer.
        """
        if self.recorded:
            content = self.tree.load(self.root / description.output(tool, args), OUTPUT)
            output = None if content is None else content.decode(errors='replace')
        else:
            places = (os.environ.get('PATH', os.defpath), *TOOL_DIRS)
            path = shutil.which(tool, path=os.pathsep.join(places))
            output = _run([path, *args], timeout) if path else None
        if output is not None:
            self.outputs[tool, *args] = output
        return output

    def ask(
        self, library: str, question: str, call: collections.abc.Callable[[], typing.Any]
    ) -> typing.Any:
        """The answer of a vendor's library, in JSON values; None if it has no answer.

        A recording keeps the answer beside the output of tools, so a recorded host answers without
        the library.  The caller must not trust the answer of such a host.

        :param library: its name, in place of a tool's
        :param call: calls the library of this machine
        :raises ToolError: when a test sets it.
        """
        if not self.recorded:
            answer = call()
            if answer is not None:
                self.outputs[library, question] = json.dumps(answer, indent=1)
            return answer
        try:
            return json.loads(self.run(library, question) or 'null')
        except (ValueError, RecursionError):
            return None


def _is_own(text: str) -> bool:
    """Whether a UUID is probably unique to one machine."""
    return str(uuid.UUID(text)) not in DEFAULT_UUIDS and len({*text} - {'-'}) > 4


def shipped() -> dict[str, str]:
    """The host descriptions of this package: name and text."""
    files = (importlib.resources.files('cyborg_lite') / 'hosts').iterdir()
    return {f.name[:-5]: f.read_text() for f in files if f.name.endswith('.yaml')}


def find(spec: str, workdir: pathlib.Path) -> Host:
    """Find a host.

    :param spec: the name of a shipped description, the path of a description, or of a
        directory or tarball that holds a recorded ``sys/``
    :param workdir: the directory into which a described or packed host is written each time
    :raises HostError: when it is none of these, or invalid.
    """
    path = pathlib.Path(spec)
    known = shipped()
    if spec in known or path.suffix in ('.yaml', '.yml'):
        described = description.parse(known[spec]) if spec in known else description.load(path)
        name = described.get('name') or _name(path)
        with _fresh(workdir / name) as root:
            description.write(described, root)
        return Host(name, workdir / name)
    if os.path.isdir(path):
        return Host(_name(path), recording.locate(path))
    if os.path.isfile(path):
        name = _name(path)
        with _fresh(workdir / name) as root:
            recording.unpack(path, root)
            recording.locate(root)
        return Host(name, recording.locate(workdir / name))
    near = difflib.get_close_matches(spec[:256], known, 1)
    hint = f'. Did you mean {near[0]}?' if near else ''
    raise description.HostError(
        f'no host {spec[:256]!r}: expected one that comes with us ({", ".join(sorted(known))}), '
        f'a host description (.yaml), or a directory or tarball that holds a recorded sys/{hint}'
    )


def _name(path: pathlib.Path) -> str:
    """The name of a host, from the name of its file."""
    stem = re.sub(r'\.(ya?ml|tar(\.\w+)?|t[gbx]z2?)$', '', os.path.basename(os.path.abspath(path)))
    name = re.sub(r'[^A-Za-z0-9_.-]+', '-', stem).strip('-._')[:63]
    if not name:
        raise description.HostError(f'{str(path)!r} gives the host no name')
    return name


@contextlib.contextmanager
def _fresh(place: pathlib.Path) -> collections.abc.Iterator[pathlib.Path]:
    """A new directory, which replaces the old one once it is complete."""
    new = place.with_name(f'.{place.name}.new')
    new.parent.mkdir(parents=True, exist_ok=True)
    for old in (new, place):
        if old.is_symlink() or old.is_file():
            raise description.HostError(f'{old} is in the way: expected a directory of ours')
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        yield new
        shutil.rmtree(place, ignore_errors=True)
        new.rename(place)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _run(argv: list[str], timeout: float) -> str:
    tool = os.path.basename(argv[0])
    command = ' '.join([tool, *argv[1:]])
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {'LC_ALL': 'C'},
            start_new_session=True,
        )
    except OSError as error:
        raise ToolError(f'{command}: cannot be started: {error}') from error
    with process:
        try:
            output, errors = _output(process, time.monotonic() + timeout)
        except BaseException as error:
            # Kill the process group: a tool that hangs has often started another one.
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, ToolError):
                raise ToolError(f'{command}: {error}') from None
            if isinstance(error, TimeoutError | subprocess.TimeoutExpired):
                raise NoAnswer(command, timeout) from None
            raise
    if process.returncode:
        said = (errors.strip() or output.strip())[-256:]
        raise ToolError(f'{command}: exit status {process.returncode}: {said!r}')
    return output


def _output(process: subprocess.Popen[bytes], deadline: float) -> tuple[str, str]:
    """Read both outputs of a process until it ends."""
    texts = {stream: bytearray() for stream in (process.stdout, process.stderr) if stream}
    with selectors.DefaultSelector() as selector:
        for stream in texts:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                stream = typing.cast('typing.IO[bytes]', key.fileobj)
                part = os.read(key.fd, 65536)
                texts[stream] += part
                if not part:
                    selector.unregister(stream)
                if len(texts[stream]) > OUTPUT:
                    raise ToolError(f'printed more than {OUTPUT} bytes')
    process.wait(max(0.1, deadline - time.monotonic()))
    output, errors = (text.decode(errors='replace') for text in texts.values())
    return output, errors
