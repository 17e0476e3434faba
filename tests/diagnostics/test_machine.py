"""What is read from the commands of macOS and the files of Linux, with what they print."""

import mlx.core as mx
import pytest

from jvlm_mlx.diagnostics import machine
from jvlm_mlx.diagnostics.machine import System, check_machine, parse_linux, parse_macos

SYSCTL = """machdep.cpu.brand_string: Apple M4 Max
vm.swapusage: total = 3072.00M  used = 1842.50M  free = 1229.50M  (encrypted)
iogpu.wired_limit_mb: 0
kern.hv_vmm_present: 0
kern.memorystatus_vm_pressure_level: 1
"""
SETTINGS = """System-wide power settings:
Currently in use:
 standby              1
 Sleep On Power Button 1
 lowpowermode         0
 ttyskeepawake        1
 hibernatemode        3
 powernap             1
 displaysleep         10
"""
BATTERY = """Now drawing from 'AC Power'
 -InternalBattery-0 (id=22806627)\t100%; charged; 0:00 remaining present: true
"""
COOL = """Note: No thermal warning level has been recorded
Note: No performance warning level has been recorded
Note: No CPU power status has been recorded
"""
HOT = """2026-01-03 11:20:31 +0100 CPU Power notify
\tCPU_Scheduler_Limit \t= 100
\tCPU_Available_CPUs \t= 14
\tCPU_Speed_Limit \t= 61
"""
GPU = """+-o AGXAcceleratorG16X  <class AGXAcceleratorG16X, id 0x1000006aa, registered>
    {
      "model" = "Apple M4 Max"
      "gpu-core-count" = 40
    }
"""
PRINTED = {
    "sysctl": SYSCTL, "settings": SETTINGS, "battery": BATTERY, "thermal": COOL, "gpu": GPU,
}  # fmt: skip


def test_a_sound_mac():
    assert parse_macos(**PRINTED) == System(
        brand="Apple M4 Max",
        gpu_cores=40,
        power_mode="automatic",
        on_battery=False,
        thermal="nominal",
        wired_limit=None,
        swap=round(1842.5 * 2**20),
        pressure="normal",
        is_virtual=False,
    )


@pytest.mark.parametrize(
    ("command", "old", "new", "attribute", "expected"),
    [
        ("settings", "lowpowermode         0", "lowpowermode         1", "power_mode", "low power"),
        ("settings", "lowpowermode", "powermode", "power_mode", "automatic"),
        ("settings", "lowpowermode         0", "powermode 2", "power_mode", "high power"),
        ("settings", SETTINGS, "", "power_mode", None),
        ("battery", "AC Power", "Battery Power", "on_battery", True),
        ("battery", BATTERY, "", "on_battery", None),
        ("thermal", COOL, HOT, "thermal", "cpu speed limit 61 %"),
        ("thermal", COOL, "Thermal warning level set to 2", "thermal", "warning level 2"),
        ("thermal", COOL, "", "thermal", None),
        ("gpu", GPU, "", "gpu_cores", None),
        ("sysctl", "wired_limit_mb: 0", "wired_limit_mb: 14336", "wired_limit", 14336 * 2**20),
        ("sysctl", "vmm_present: 0", "vmm_present: 1", "is_virtual", True),
        ("sysctl", "pressure_level: 1", "pressure_level: 4", "pressure", "critical"),
        ("sysctl", "used = 1842.50M", "used = 2.25G", "swap", round(2.25 * 2**30)),
        ("sysctl", SYSCTL, "sysctl: unknown oid\n", "swap", None),
    ],
)
def test_each_fact_is_read_from_its_command(command, old, new, attribute, expected):
    assert old in PRINTED[command]
    changed = {**PRINTED, command: PRINTED[command].replace(old, new)}
    assert getattr(parse_macos(**changed), attribute) == expected


def test_every_command_is_asked_and_none_needs_to_answer(monkeypatch):
    monkeypatch.setattr(machine.platform, "system", lambda: "Darwin")
    asked = []

    def run(command):
        asked.append(command[0])
        return ""

    assert machine.read_system(run) == System()
    assert set(asked) == {"sysctl", "pmset", "ioreg"}


def test_a_command_that_is_not_there_says_nothing():
    assert machine._output(["no-such-command-anywhere"]) == ""
    assert machine._output(["echo", "hello"]) == "hello\n"


MEMINFO = "MemTotal:       24661948 kB\nSwapTotal:       4194300 kB\nSwapFree:        3145724 kB\n"
CPUINFO = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu sse {flag}\n"


@pytest.mark.parametrize(("flag", "is_virtual"), [("hypervisor", True), ("avx2", False)])
def test_linux_files(flag, is_virtual):
    assert parse_linux(MEMINFO, CPUINFO.format(flag=flag)) == System(
        brand="AMD EPYC", swap=2**30, is_virtual=is_virtual
    )
    assert parse_linux("", "") == System()


@pytest.fixture
def mac(monkeypatch):
    """A sound Mac, as far as other things say; what sysctl says is the test's."""
    info = {"architecture": "applegpu_g17s", "max_recommended_working_set_size": 11_400_000_000}
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx, "device_info", lambda: info)
    monkeypatch.setattr(machine, "MIN_MEMORY", 0)
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (0.1, 0.1, 0.1))
    monkeypatch.setattr(machine.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(machine.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(machine.platform, "mac_ver", lambda: ("26.3", ("", "", ""), "arm64"))
    return monkeypatch


def findings(system):
    return {finding.name: finding for finding in check_machine(system)}


def test_nothing_is_wrong_with_a_sound_mac(mac):
    found = findings(parse_macos(**PRINTED))
    assert {finding.verdict for finding in found.values()} == {"ok"}
    assert found["chip"].value.startswith("Apple M4 Max, ")
    assert found["chip"].value.endswith("40 of the GPU")
    assert found["system"].value.startswith("macOS 26.3, Python 3.")
    assert found["memory for the GPU"].value == "11.4 GB"
    assert found["power mode"].value == "automatic, on mains"


@pytest.mark.parametrize(
    ("system", "name", "says"),
    [
        (System(power_mode="low power", on_battery=True), "power mode", "Low Power Mode slows"),
        (System(thermal="cpu speed limit 61 %"), "thermal state", "let it cool down"),
        (System(swap=3 * 10**9, pressure="warning"), "swap in use", "the system swaps"),
        (System(swap=0, pressure="critical"), "swap in use", "the system swaps"),
        (System(is_virtual=True), "virtual machine", "not the machine's"),
    ],
)
def test_what_slows_a_machine_is_a_suspect_and_no_problem(mac, system, name, says):
    finding = findings(system)[name]
    assert says in finding.suspect
    assert finding.verdict == "slow"


def test_swap_without_pressure_is_nothing_to_mention(mac):
    assert findings(System(swap=3 * 10**9, pressure="normal"))["swap in use"].verdict == "ok"


def test_a_busy_machine_is_a_suspect(mac):
    mac.setattr(machine.os, "getloadavg", lambda: (99.0, 1.0, 1.0))
    assert "other programs" in findings(System())["load"].suspect


def test_macos_must_be_new_enough(mac):
    mac.setattr(machine.platform, "mac_ver", lambda: ("13.6", ("", "", ""), "arm64"))
    assert "MLX needs macOS 14" in findings(System())["system"].problem
    mac.setattr(machine.platform, "mac_ver", lambda: ("26.1", ("", "", ""), "arm64"))
    assert "neural accelerators need macOS 26.2" in findings(System())["system"].suspect


def test_a_wired_limit_that_somebody_set_is_named(mac):
    limit = findings(System(wired_limit=14 * 10**9))["memory for the GPU"]
    assert limit.value == "11.4 GB, 14.0 GB set by sysctl"


def test_a_mac_without_its_gpu_is_a_problem(mac):
    mac.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    assert "does not use the GPU of this Mac" in findings(System())["chip"].problem


def test_rosetta_is_named(mac):
    mac.setattr(machine.platform, "machine", lambda: "x86_64")
    assert "Rosetta" in findings(System())["chip"].problem


def test_an_old_mlx_is_a_problem(mac):
    mac.setattr(machine, "version", lambda _: "0.31.2")
    assert "pip install -U mlx" in findings(System())["MLX"].problem


def test_little_memory_is_a_problem(mac):
    mac.setattr(machine, "MIN_MEMORY", 10**15)
    assert "this is less than 8 GB: only a 4-bit model" in findings(System())["memory"].problem
