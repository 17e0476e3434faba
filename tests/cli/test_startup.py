"""The first second of a command: what is imported, and Ctrl-C meanwhile."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FUNCTIONS = ("convert", "evaluate", "explain", "fuse", "generate", "train")
SCRIPT = "import sys; from jvlm_mlx.cli.entry import main; sys.exit(main())"
COMMANDS = {
    "module": ("-m", "jvlm_mlx.generate"),
    "script": ("-c", SCRIPT, "generate"),
}
LIBRARIES = (
    "numpy", "mlx.core", "PIL.Image", "jvlm_mlx.cli.arguments", "transformers.utils",
    "transformers", "mlx_lm",
)  # fmt: skip
# From the first import after Ctrl-C is handled to the last that a model needs.
MOMENTS = [
    *(("module", moment) for moment in ("jvlm_mlx.errors", "jvlm_mlx", *LIBRARIES)),
    *(("script", moment) for moment in ("jvlm_mlx.cli.parser", "jvlm_mlx.cli.main", *LIBRARIES)),
]


def run_code(code, *arguments):
    subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments], check=True, cwd=ROOT
    )  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("first", ["module", "function"])
def test_functions_keep_their_names_beside_the_modules(name, first):
    """`jvlm_mlx.generate` is a function and a module that runs; importing one keeps the other."""
    steps = ["import jvlm_mlx\n", f"assert callable(jvlm_mlx.{name})\n"]
    steps.insert(1 if first == "module" else 2, f"import jvlm_mlx.{name}\n")
    run_code(
        "".join(steps)
        + f"from jvlm_mlx import {name} as function\n"
        + f"from jvlm_mlx.{name} import {name}\n"
        + f"assert function is {name} is jvlm_mlx.{name}"
    )


def test_every_public_name_is_found():
    run_code(
        "import jvlm_mlx\n"
        "assert set(jvlm_mlx.__all__) <= set(dir(jvlm_mlx))\n"
        "from jvlm_mlx import *\n"
        "assert all(name in globals() for name in jvlm_mlx.__all__)\n"
        "assert not hasattr(jvlm_mlx, 'no_such_name')"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_no_library_that_only_a_model_needs(command):
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", *COMMANDS[command], "--help"],
        capture_output=True, check=True, cwd=ROOT, text=True,
    )  # fmt: skip
    assert "usage:" in shown.stdout
    imported = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert "jvlm_mlx.cli.arguments" in imported
    heavy = {"mlx_lm", "transformers", "huggingface_hub.hf_api", "httpx", "matplotlib", "asyncio"}
    others = {f"jvlm_mlx.{name}" for name in ("training", "evaluation", "serving", "train")}
    assert not imported & (heavy | others)


@pytest.mark.parametrize(("command", "moment"), MOMENTS)
def test_interrupt_while_importing_ends_without_traceback(command, moment, golden_folder):
    process = subprocess.Popen(
        [
            sys.executable, "-X", "importtime", *COMMANDS[command],
            "--model", golden_folder / "tiny", "-p", "Hi", "--max-tokens", "20000",
        ],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        cwd=ROOT, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.rpartition("|")[2].strip() == moment:
            process.send_signal(signal.SIGINT)
            break
    else:
        pytest.fail(f"{moment} was not imported")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_interrupt_inside_executed_text_ends_with_the_same_code(tmp_path):
    """dataclasses and named tuples execute text while a library that has them is imported."""
    (tmp_path / "app.py").write_text(
        "import sys\n"
        "import jvlm_mlx.generate\n"
        "from jvlm_mlx.cli.main import main\n"
        "def load(*_):\n"
        "    exec('raise KeyboardInterrupt')\n"
        "sys.modules['jvlm_mlx.generate'].load_model = load\n"
        "sys.exit(main(['generate', '-p', 'Hi']))"
    )
    done = subprocess.run(
        [sys.executable, "-m", "app"], capture_output=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, b"\n")


@pytest.mark.parametrize("start", ["script", "package"])
def test_an_app_keeps_its_own_interrupts(start, tmp_path):
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text(
        "import signal\n"
        "import jvlm_mlx\n"
        "jvlm_mlx.generate, jvlm_mlx.convert\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    )
    (tmp_path / "app" / "__main__.py").write_text("print('ran')")
    code = ("-m", "app") if start == "package" else ("-c", "import app; print('ran')")
    done = subprocess.run(
        [sys.executable, *code, "jvlm_mlx.generate"], capture_output=True, text=True, check=False,
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("ran\n", "")


def test_an_ignored_interrupt_stays_ignored():
    code = (
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "import jvlm_mlx.cli.entry\n"
        "assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN"
    )
    run_code(code)


def test_the_suite_hears_interrupts_wherever_it_is_started():
    """Shells start what runs in the background deaf to Ctrl-C, which tests send."""
    code = (
        "import signal\n"
        "import tests.conftest\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    )
    subprocess.run(
        ["sh", "-c", 'trap "" INT; exec "$0" -c "$1"', sys.executable, code], cwd=ROOT, check=True
    )


ON_A_MAC = (
    "import platform\nplatform.system, platform.machine = lambda: 'Darwin', lambda: 'arm64'\n"
)
SHOW = "print({name: os.environ[name] for name in sorted(os.environ) if name[:8] == 'MLX_MAX_'})"


def command_buffer_limits(before, code, environment=None):
    """Return the limits that a process has in its environment after some code."""
    shown = subprocess.run(
        [sys.executable, "-c", f"import os\n{before}{code}\n{SHOW}"],
        capture_output=True, check=True, cwd=ROOT, text=True,
        env={
            **{name: value for name, value in os.environ.items() if name[:8] != "MLX_MAX_"},
            **(environment or {}),
        },
    )  # fmt: skip
    return ast.literal_eval(shown.stdout)


def memory_of(gigabytes):
    return f"os.sysconf = lambda name: {gigabytes} if 'PHYS' in name else 10**9\n"


def test_the_command_line_sets_the_limits_of_command_buffers_on_apple_silicon():
    # What it imports next has no chance to import MLX first.
    entry = (
        "import sys, types\n"
        "following = types.ModuleType('jvlm_mlx.cli.main')\n"
        "following.main = following.main_convert = None\n"
        "sys.modules['jvlm_mlx.cli.main'] = following\n"
        "import jvlm_mlx.cli.entry\n"
        "assert 'mlx.core' not in sys.modules"
    )
    large, small = ON_A_MAC + memory_of(64), ON_A_MAC + memory_of(16)
    both = {"MLX_MAX_MB_PER_BUFFER": "200", "MLX_MAX_OPS_PER_BUFFER": "500"}
    assert command_buffer_limits(large, entry) == both
    assert command_buffer_limits(small, entry) == {"MLX_MAX_OPS_PER_BUFFER": "500"}
    own = {"MLX_MAX_OPS_PER_BUFFER": "7"}
    assert command_buffer_limits(large, entry, own) == {**both, **own}
    assert command_buffer_limits(memory_of(64), entry) == {}  # this machine is no Mac


def test_the_library_does_not_set_them():
    code = "import jvlm_mlx.generate, jvlm_mlx.cli.main, mlx.core"
    assert command_buffer_limits(ON_A_MAC + memory_of(64), code) == {}


def test_a_module_that_runs_sets_them():
    run = "import sys\nsys.argv, sys.orig_argv = ['-m'], ['python', '-m', 'jvlm_mlx.chat']\n"
    code = run + "import jvlm_mlx"
    found = command_buffer_limits(ON_A_MAC + memory_of(64), code)
    assert found["MLX_MAX_OPS_PER_BUFFER"] == "500"
