# SPDX-License-Identifier: Apache-2.0
"""Facts of GPUs from NVIDIA's library, as JSON values, and the validation of such values.

Each value is read alone: a failure does not affect other values.

Source: the NVML API reference, device queries and multi instance GPU management.
"""

from __future__ import annotations

import collections.abc
import contextlib
import ctypes
import re
import typing

from oslo_log import log

from cyborg_lite import contract
from cyborg_lite import driver
from cyborg_lite.driver import sysfs

LOG = log.getLogger(__name__)

Facts = dict[str, typing.Any]
#: Facts by the address of a GPU.
Answers = dict[str, Facts]
Note = collections.abc.Callable[[str], None]

#: The part of a MIG instance's name after the name of the card.
#: Source: NVIDIA MIG user guide, "MIG Device Names".
SIZE = '(?:[0-9]{1,2}c\\.)?[0-9]{1,2}g\\.[0-9]{1,4}gb(?:[+-][a-z.]{1,16}){0,2}'
PROFILE = re.compile(f'.* MIG ({SIZE})')
#: The profile of a MIG instance whose name has another form.
UNKNOWN = 'unknown'
#: A health, and its reason if there is one.
HEALTH = re.compile('(ok|unknown|warning|critical)( [a-z0-9]+(_[a-z0-9]+)*)?')
#: The version of CUDA.
CUDA = re.compile(r'[0-9]{1,3}\.[0-9]{1,2}')
#: The maximum number of MIG instances of a card that are read: a card has 7 slices.
INSTANCES = 64
#: The maximum number of NVLinks of a card whose state is read: a B200 has 18.
NVLINKS = 36
#: The calls that list the processes that compute on a GPU, without and with MPS.
#: Source: the NVML API reference, device queries.
TABLES = ('nvmlDeviceGetComputeRunningProcesses', 'nvmlDeviceGetMPSComputeRunningProcesses')
#: The errors of NVML for a number without a MIG instance.
NO_INSTANCE = ('NVMLError_NotFound', 'NVMLError_InvalidArgument')
#: The errors of NVML if there is no driver, as opposed to a fault.
ABSENT = ('NVMLError_LibraryNotFound', 'NVMLError_DriverNotLoaded')
#: The errors of an unusable GPU, and the reasons in its health: it has fallen off the bus, or
#: needs a reset. Source: NVML, NVML_ERROR_GPU_IS_LOST and NVML_ERROR_RESET_REQUIRED.
BROKEN = {'NVMLError_GpuIsLost': 'gpu_lost', 'NVMLError_ResetRequired': 'gpu_reset_required'}
#: The reason of a GPU of which NVML does not tell what its trial asks.
NO_ANSWER = 'gpu_no_answer'
#: The errors of a card, or of a release of NVML, that does not have a value.
SILENT = ('NVMLError_NotSupported', 'NVMLError_FunctionNotFound', 'AttributeError')


def ask(addresses: collections.abc.Collection[str], known: bool, note: Note) -> Answers | None:
    """The facts of each GPU of this machine from NVML, by address; None if it does not load.

    :param addresses: the addresses of the GPUs whose facts are read
    :param known: whether NVML reported a GPU before, so that no report now is a fault
    :param note: called with a text for each failure
    """
    with contextlib.ExitStack() as stack:
        try:
            nvml = stack.enter_context(_library())
        except Exception as error:  # package, library or driver is absent, or of another release
            LOG.info('NVML does not load, so only sysfs is read: %s', error)
            if known or not isinstance(error, ImportError) and type(error).__name__ not in ABSENT:
                note(f'NVML does not load: {error}')
            return None
        return _ask_each(nvml, addresses, note)


@contextlib.contextmanager
def _library() -> collections.abc.Iterator[typing.Any]:
    import pynvml

    pynvml.nvmlInit()
    try:
        yield pynvml
    finally:
        # An error of the shutdown does not invalidate the answers.
        with contextlib.suppress(Exception):
            pynvml.nvmlShutdown()


def trial(address: str) -> str | None:
    """Why the GPU at an address, which was critical, may not be used again; None if it may.

    It can be opened, and has none of the symptoms: also none for which another GPU would only get a
    warning, since each of them waits for a reset.
    """
    try:
        with _library() as nvml:
            if reason := _broken(nvml, address):
                return reason
            gpu = nvml.nvmlDeviceGetHandleByPciBusId(address.encode())
            said = [_asked(ask, nvml, gpu) for ask in SYMPTOMS]
    except Exception as error:
        LOG.info('The trial of the GPU %s failed: %s', address, error)
        return NO_ANSWER
    return driver.why_not_ok(driver.worst(*said), NO_ANSWER)


def _ask_each(nvml: typing.Any, addresses: collections.abc.Collection[str], note: Note) -> Answers:
    """Read the facts of each GPU that NVML counts."""
    told: Answers = {}
    broken = False
    try:
        count = int(nvml.nvmlDeviceGetCount())
    except Exception as error:
        note(f'NVML does not count the GPUs: {error}')
        count = 0
    for number in range(count):
        try:
            gpu = nvml.nvmlDeviceGetHandleByIndex(number)
            bus = _text(nvml.nvmlDeviceGetPciInfo(gpu).busId)
        except Exception as error:
            note(f'NVML does not tell of GPU {number}: {error}')
            broken = broken or type(error).__name__ in BROKEN
            continue
        address = sysfs.normal(bus) or bus
        told[address] = _ask_for(nvml, gpu, address, note) if address in addresses else {}
    for address in {*addresses} - told.keys() if broken else ():
        # The number does not identify the card.
        if reason := _broken(nvml, address):
            told[address] = {'health': ['critical', reason]}
    return told


def _ask_for(nvml: typing.Any, gpu: typing.Any, address: str, note: Note) -> Facts:
    """Read each value alone: a failure does not affect other values."""
    facts: Facts = {}
    said = [driver.Health('ok')]
    for key, ask in QUESTIONS.items():
        try:
            facts[key] = ask(nvml, gpu)
        except Exception as error:
            said.append(_failed(error))
            # An unsupported value is not a fault: a GB10 has no memory of its own.
            if type(error).__name__ != 'NVMLError_NotSupported':
                note(f'NVML does not tell the {key} of {address}: {error}')
    health = driver.worst(*said, *(_asked(ask, nvml, gpu) for ask in SYMPTOMS))
    return facts | ({'health': [health.level, health.reason]} if health else {})


#: The values that are read of each GPU, by our name.
QUESTIONS: dict[str, collections.abc.Callable[[typing.Any, typing.Any], typing.Any]] = {
    'name': lambda nvml, gpu: _text(nvml.nvmlDeviceGetName(gpu)),
    'uuid': lambda nvml, gpu: _text(nvml.nvmlDeviceGetUUID(gpu)),
    'index': lambda nvml, gpu: int(nvml.nvmlDeviceGetIndex(gpu)),
    'memory_mb': lambda nvml, gpu: int(nvml.nvmlDeviceGetMemoryInfo(gpu).total) >> 20,
    'mig': lambda nvml, gpu: _mig(nvml, gpu),
    'nvlinks': lambda nvml, gpu: _nvlinks(nvml, gpu),
    'pids': lambda nvml, gpu: _pids(nvml, gpu),
    'pid_memory': lambda nvml, gpu: _memory(nvml, gpu),
    'utilization': lambda nvml, gpu: _utilization(nvml, gpu),
    'cuda': lambda nvml, gpu: _cuda(nvml),
}


def _failed(error: Exception) -> driver.Health:
    """The health of a GPU after a failed call."""
    kind = type(error).__name__
    if kind in BROKEN:
        return driver.Health('critical', BROKEN[kind])
    return driver.Health('ok') if kind in SILENT else driver.Health()


def _asked(
    ask: collections.abc.Callable[[typing.Any, typing.Any], str | None],
    nvml: typing.Any,
    gpu: typing.Any,
) -> driver.Health:
    """The health of a GPU by one symptom."""
    try:
        reason = ask(nvml, gpu)
    except Exception as error:
        return _failed(error)
    level = 'warning' if reason in WARNINGS else 'critical'
    return driver.Health(level, reason) if reason else driver.Health('ok')


def _broken(nvml: typing.Any, address: str) -> str | None:
    """Why the GPU at an address cannot be used; None if NVML reports no such error."""
    try:
        nvml.nvmlDeviceGetHandleByPciBusId(address.encode())
    except Exception as error:
        return BROKEN.get(type(error).__name__)
    return None


def _uncorrected(nvml: typing.Any, gpu: typing.Any) -> str | None:
    """Memory errors that ECC could not correct since the driver was loaded, which a reset clears.

    Source: NVML, nvmlDeviceGetTotalEccErrors and nvmlEccCounterType_t.
    """
    kinds = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
    return 'ecc_uncorrectable' if int(nvml.nvmlDeviceGetTotalEccErrors(gpu, *kinds)) else None


def _worn(nvml: typing.Any, gpu: typing.Any) -> str | None:
    """Errors in SRAM that exceed the threshold at which NVIDIA has the GPU diagnosed: no reset
    clears them.  Only root may read them.

    Source: NVML, nvmlDeviceGetSramEccErrorStatus and nvmlEccSramErrorStatus_v1_t.
    """
    status = nvml.c_nvmlEccSramErrorStatus_v1_t()
    try:
        nvml.nvmlDeviceGetSramEccErrorStatus(gpu, ctypes.byref(status))
    except Exception as error:
        if type(error).__name__ != 'NVMLError_NoPermission':
            raise
        return None
    return 'sram_threshold' if status.bThresholdExceeded else None


def _remapped(nvml: typing.Any, gpu: typing.Any) -> str | None:
    """Rows of memory whose remapping failed, or waits for a reset.

    Source: NVML, nvmlDeviceGetRemappedRows: corrected, uncorrected, pending, failed.
    """
    _, _, pending, failed = nvml.nvmlDeviceGetRemappedRows(gpu)
    return 'row_remap_failure' if failed else 'row_remap_pending' if pending else None


def _retired(nvml: typing.Any, gpu: typing.Any) -> str | None:
    """Pages of memory that are retired when the driver is loaded again: what GPUs before Ampere
    have instead of row remapping.

    Source: NVML, nvmlDeviceGetRetiredPagesPendingStatus.
    """
    pending = nvml.nvmlDeviceGetRetiredPagesPendingStatus(gpu) == nvml.NVML_FEATURE_ENABLED
    return 'page_retirement' if pending else None


def _recovery(nvml: typing.Any, gpu: typing.Any) -> str | None:
    """What has to be done to recover the GPU, as the kernel driver concludes from its errors (XID).

    A driver that does not know this field answers with one of several errors.  Drivers of later
    releases may know further actions: an unknown one is an action as well.

    Source: NVML, NVML_FI_DEV_GET_GPU_RECOVERY_ACTION and nvmlDeviceGpuRecoveryAction_t.
    """
    [field] = nvml.nvmlDeviceGetFieldValues(gpu, [nvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])
    if field.nvmlReturn != nvml.NVML_SUCCESS:
        return None
    action = int(field.value.uiVal)
    return RECOVERIES.get(action, f'gpu_recovery_{action}')


#: The reasons by the number of the recovery; 0 is none.
RECOVERIES = {
    0: None,
    1: 'gpu_reset_required',
    2: 'gpu_reboot',
    3: 'gpu_drain_p2p',
    4: 'gpu_drain',
    5: 'gpu_imex_domain',
    6: 'gpu_bus_reset',
    7: 'gpu_system_reboot',
}
#: The symptoms of a faulty GPU: each returns a reason, or None.
SYMPTOMS = (_uncorrected, _worn, _remapped, _retired, _recovery)
#: The reasons for which a GPU need not be withdrawn: it can run programs until it is reset.
#: Source: NVIDIA, "GPU Memory Error Management", error recovery and response flags.
WARNINGS = ('row_remap_pending', 'page_retirement', 'gpu_drain')
#: The ids of a MIG instance in NVML, and the call for each.
INSTANCE_IDS: dict[str, collections.abc.Callable[[typing.Any, typing.Any], str]] = {
    'gpu_instance_id': lambda nvml, mig: str(int(nvml.nvmlDeviceGetGpuInstanceId(mig))),
    'compute_instance_id': lambda nvml, mig: str(int(nvml.nvmlDeviceGetComputeInstanceId(mig))),
}


def _mig(nvml: typing.Any, gpu: typing.Any) -> list[Facts] | None:
    """The MIG instances of a card; None while it is not in MIG mode.

    All or none: an instance that cannot be read must not look as if it were missing.
    """
    current, _ = nvml.nvmlDeviceGetMigMode(gpu)
    if current != nvml.NVML_DEVICE_MIG_ENABLE:
        return None
    instances = []
    for number in range(min(int(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu)), INSTANCES)):
        try:
            mig = nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, number)
        except Exception as error:
            if type(error).__name__ not in NO_INSTANCE:
                raise
            continue
        facts = {key: ask(nvml, mig) for key, ask in INSTANCE_IDS.items()}
        instances.append(
            facts | {'uuid': _text(nvml.nvmlDeviceGetUUID(mig)), 'profile': _mig_profile(nvml, mig)}
        )
    return instances


def _nvlinks(nvml: typing.Any, gpu: typing.Any) -> dict[str, int]:
    """The number of active NVLinks to each GPU or switch, by its address.

    Source: NVML, nvmlDeviceGetNvLinkState and nvmlDeviceGetNvLinkRemotePciInfo.
    """
    found: collections.Counter[str] = collections.Counter()
    for number in range(NVLINKS):
        try:
            active = nvml.nvmlDeviceGetNvLinkState(gpu, number) == nvml.NVML_FEATURE_ENABLED
            if active:
                bus = _text(nvml.nvmlDeviceGetNvLinkRemotePciInfo(gpu, number).busId)
                found[sysfs.normal(bus) or bus] += 1
        except Exception as error:
            # A card has fewer links, or none, or does not say what is at their other ends.
            if type(error).__name__ not in (*SILENT, 'NVMLError_InvalidArgument'):
                raise
    return dict(found)


def _pids(nvml: typing.Any, gpu: typing.Any) -> list[int]:
    """The pids of the processes that compute on a GPU, or on a MIG instance of it.

    A process that only draws is not among them: each display server would be.  A pid that NVML
    cannot translate to the pid namespace of the agent is 0.
    """
    found = {int(each.pid) for each in _computing(nvml, gpu)}
    return [pid for pid in sorted(found) if 0 < pid <= contract.PID][: contract.PROCESSES]


def _computing(nvml: typing.Any, gpu: typing.Any) -> collections.abc.Iterator[typing.Any]:
    for name in TABLES:
        try:
            yield from getattr(nvml, name)(gpu)
        except Exception as error:
            # Only root may see all instances of a GPU in MIG mode.
            if type(error).__name__ not in (*SILENT, 'NVMLError_NoPermission'):
                raise


def _memory(nvml: typing.Any, gpu: typing.Any) -> dict[str, int]:
    """How much memory of a GPU each process has, in MiB, by its pid.

    A process of several MIG instances is listed for each of them. What NVML does not tell is left
    out.

    Source: NVML, nvmlProcessInfo_t: usedGpuMemory is in bytes, and None in Python if it is not
    available.
    """
    found: collections.Counter[int] = collections.Counter()
    # If the tables cannot be read, that is said of the pids.
    with contextlib.suppress(Exception):
        for each in _computing(nvml, gpu):
            if each.usedGpuMemory is not None and 0 < int(each.pid) <= contract.PID:
                found[int(each.pid)] += int(each.usedGpuMemory)
    sizes = sorted(found.items())[: contract.PROCESSES]
    return {str(pid): size >> 20 for pid, size in sizes}


def _utilization(nvml: typing.Any, gpu: typing.Any) -> int | None:
    """In percent, for how much of the last sample a program computed; None if it is not measured,
    as in MIG mode.

    Source: NVML, nvmlDeviceGetUtilizationRates.
    """
    return _if_told(lambda: int(nvml.nvmlDeviceGetUtilizationRates(gpu).gpu))


def _cuda(nvml: typing.Any) -> str | None:
    """The latest version of CUDA that the driver supports, such as ``12.9``; None if NVML does not
    tell it.

    Source: NVML, nvmlSystemGetCudaDriverVersion and NVML_CUDA_DRIVER_VERSION_MAJOR.
    """
    number = _if_told(lambda: int(nvml.nvmlSystemGetCudaDriverVersion()))
    return None if number is None else f'{number // 1000}.{number % 1000 // 10}'


def _if_told(call: collections.abc.Callable[[], int]) -> int | None:
    """The answer of a call; None if the card, or the release of NVML, does not have one."""
    try:
        return call()
    except Exception as error:
        if type(error).__name__ not in SILENT:
            raise
        return None


def sound(told: typing.Any) -> Facts:
    """The valid facts of a card: a recording may hold anything."""
    facts = told if isinstance(told, dict) else {}
    return {key: facts[key] for key in FORMS.keys() & facts.keys() if FORMS[key](facts[key])}


def _are_instances(told: typing.Any) -> bool:
    """Whether this is a valid list of MIG instances; None means that MIG is off."""
    if not isinstance(told, list):
        return told is None
    if len(told) > INSTANCES or not all(map(_is_instance, told)):
        return False
    return len({each['uuid'] for each in told}) == len(told)


def _is_instance(told: typing.Any) -> bool:
    if not isinstance(told, dict) or told.keys() != {'uuid', 'profile', *INSTANCE_IDS}:
        return False
    texts = all(map(_is_text, told.values()))
    return texts and bool(re.fullmatch(f'{SIZE}|{UNKNOWN}', told['profile']))


def _is_text(value: typing.Any) -> bool:
    text = value if isinstance(value, str) else ''
    return bool(text.strip()) and len(text) < 256 and text.isprintable()


def _is_number(value: typing.Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 32


def _are_nvlinks(told: typing.Any) -> bool:
    if not isinstance(told, dict) or len(told) > NVLINKS:
        return False
    counts = (type(n) is int and 1 <= n <= NVLINKS for n in told.values())
    return all(map(_is_text, told)) and all(counts)


def _are_pids(told: typing.Any) -> bool:
    pids = told if isinstance(told, list) else ['']
    sound = all(type(pid) is int and 0 < pid <= contract.PID for pid in pids)
    return sound and len(pids) <= contract.PROCESSES


def _is_memory(told: typing.Any) -> bool:
    if not isinstance(told, dict) or not all(re.fullmatch('[0-9]{1,7}', pid) for pid in told):
        return False
    sizes = all(type(size) is int and 0 <= size <= contract.MEMORY for size in told.values())
    return sizes and _are_pids([*map(int, told)])


def _is_utilization(told: typing.Any) -> bool:
    return told is None or type(told) is int and 0 <= told <= 100


def _is_health(told: typing.Any) -> bool:
    words = told if isinstance(told, list) and len(told) == 2 else ['']
    words = words[:1] if words[-1] is None else words
    return all(map(_is_text, words)) and bool(HEALTH.fullmatch(' '.join(words)))


#: The validation of each value, by its name.
FORMS: dict[str, collections.abc.Callable[[typing.Any], bool]] = {
    'name': _is_text,
    'uuid': _is_text,
    'index': _is_number,
    'memory_mb': _is_number,
    'mig': _are_instances,
    'nvlinks': _are_nvlinks,
    'pids': _are_pids,
    'pid_memory': _is_memory,
    'utilization': _is_utilization,
    'cuda': lambda told: told is None or isinstance(told, str) and bool(CUDA.fullmatch(told)),
    'health': _is_health,
}


def _mig_profile(nvml: typing.Any, mig: typing.Any) -> str:
    """``1g.10gb`` of ``NVIDIA H100 80GB HBM3 MIG 1g.10gb``; ``unknown`` if the name is another.

    :raises ValueError: when the name is not printable.
    """
    match = PROFILE.fullmatch(_text(nvml.nvmlDeviceGetName(mig)))
    return match[1] if match else UNKNOWN


def _text(value: str | bytes) -> str:
    """A text from NVML, which is bytes in older releases of its package.

    :raises ValueError: when it is not printable.
    """
    text = value.decode(errors='replace') if isinstance(value, bytes) else str(value)
    if not _is_text(text):
        raise ValueError(f'not a text to be shown: {text[:32]!r}')
    return text
