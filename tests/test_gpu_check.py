"""scripts/gpu_check.sh and what it calls, with stand-ins for a GPU, Python, CUDA's tools and the kernels' programs.

What the scripts say, whichever part of a machine is missing, hangs or fails. **None has run on a GPU.**
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import gpu_machine
import pytest

ROOT = next(p for p in Path(__file__).parents if (p / "scripts").is_dir())
sys.path.insert(0, str(ROOT))

from scripts import gpu_bundle  # noqa: E402


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    gpu_machine.fill(tmp_path / "bin")
    return tmp_path


def bundle_of(machine: Path) -> Path:
    """What make gpu-bundle would have made."""
    bundle = machine / "bundle"
    (bundle / "modules").mkdir(parents=True)
    for name in ("vecbank_cuda_tests", "vecbank_cuda_timer"):
        shutil.copy(machine / "bin" / name, bundle / name)
    for name in ("_C.so", "_C_cuda.so"):
        (bundle / "modules" / name).touch()
    (bundle / "SOURCES").write_text(sources())
    return bundle


def sources() -> str:
    return subprocess.run([str(ROOT / "scripts" / "cuda_sources.sh")], capture_output=True, text=True).stdout


def environment(machine: Path, **settings: str) -> dict[str, str]:
    bin_ = machine / "bin"
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith("VECBANK_") and k not in ("PYTHONPATH", "PYTHON")},
        "PATH": f"{bin_}:{os.environ['PATH']}",
        "PYTHON": str(bin_ / "python"),
        "VECBANK_GPU_BUILD": str(machine / "build"),
        "VECBANK_GPU_SHARDS": "2",
        "VECBANK_GPU_TEST_SECONDS": "2",
        **settings,
    }


def gpu_check(machine: Path, *arguments: str, **settings: str) -> tuple[int, str]:
    """Exit status and what it printed: at most 40 lines a phase. Whatever happens, at most eight files are left."""
    out = machine / "out"
    command = ["bash", str(ROOT / "scripts" / "gpu_check.sh"), arguments[0], str(out), *arguments[1:]]
    done = subprocess.run(command, env=environment(machine, **settings), capture_output=True, text=True, timeout=120)
    assert not out.exists() or len(list(out.iterdir())) <= 8
    assert len(done.stdout.splitlines()) <= (160 if arguments[0] == "all" else 40), done.stdout
    return done.returncode, done.stdout + done.stderr


def log_of(machine: Path) -> str:
    return (machine / "out" / "log.txt").read_text()


def test_first(machine: Path) -> None:
    status, said = gpu_check(machine, "first")
    assert status == 0 and "first: all that ran passed" in said, said
    title = r"==== first  \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC  Made-up GPU, 1.0  commit "
    assert re.match(title, said) and re.match(title, log_of(machine))
    assert "ok    build: built vecbank_cuda_tests vecbank_cuda_timer" in said and "-DVECBANK_TORCH=OFF" in log_of(
        machine
    )
    assert "bf16 tensor cores: worst error 0.5" in said
    assert "ok    kernels: 7 of 7 tests passed" in said and "note: torch 2.11 Made-up GPU" in said
    assert "nearest-a/sm90 2.5 ms predicted 2.2: x 1.14" in said and "ok    timer: 2 of 2 cases measured" in said
    assert (machine / "out" / "timer.jsonl").read_text() == "{}\n"
    wanted = ("accumulation", "sm90_equals", "operands", "search_equals", "residual", "codebook", "project")
    at = [re.search(f"==== \\S*{name}", log_of(machine)) for name in wanted]
    assert all(at) and [m.start() for m in at if m] == sorted(m.start() for m in at if m)  # what decides most is first


@pytest.mark.parametrize(
    "how, said_of_it",
    [("HANGS", "not finished in time"), ("CRASHES", "crashed, signal 11"), ("FAILS", "status 1: 1 tests, 1 failed")],
)
def test_one_bad_test_costs_itself_alone(machine: Path, how: str, said_of_it: str) -> None:
    status, said = gpu_check(machine, "first", **{how: "cuda_search_sm90_equals_cpu"})
    assert status == 1 and f"FAIL  cuda_search_sm90_equals_cpu: {said_of_it}" in said, said
    assert "ok    kernels: 6 of 7 tests passed" in said and "ok    timer: 2 of 2 cases" in said
    assert ("cuda_cases.h:9: failed: same" in said) == (how == "FAILS")
    assert "note: from here on, tests of every path leave sm90 out" in said and "sm90 is left out" in log_of(machine)


def test_a_case_of_the_timer_that_hangs(machine: Path) -> None:
    status, said = gpu_check(machine, "first", TIMER_HANGS="1")
    assert status == 1 and "FAIL  timer nearest-a/sm90: not finished in time" in said and "topk-b/sm90 3.0 ms" in said


def test_first_without_a_gpu(machine: Path) -> None:
    status, said = gpu_check(machine, "first", NO_GPU="1")
    assert status == 2 and "not run: 7 tests of the kernels (no CUDA device)" in said
    assert "NOT RUN: no test of the kernels passed" in said and "timer:" not in said
    assert "first: nothing could run" in said and "all that ran" not in said


def test_a_timer_that_measures_nothing(machine: Path) -> None:
    status, said = gpu_check(machine, "first", NO_TIMER="1")
    assert status == 0 and "none  timer: 0 of 2 cases measured" in said and "timer.jsonl" not in said, said
    assert "not run: 2 cases of the timer (no CUDA device)" in said and "ok    kernels: 7 of 7" in said
    assert not (machine / "out" / "timer.jsonl").exists()
    status, said = gpu_check(machine, "first", TIMER_HANGS="1", VECBANK_GPU_TEST_SECONDS="1")
    assert status == 1 and "ok    timer: 1 of 2 cases measured" in said, said


def test_first_when_the_time_is_used_up(machine: Path) -> None:
    # bash goes on counting from a SECONDS of its environment. The last 80 of the 240 s are the timer's.
    bundle = ("--bundle", str(bundle_of(machine)))
    status, said = gpu_check(machine, "first", *bundle, SECONDS="162")
    assert status == 1 and "FAIL  kernels: 7 tests were not reached in time" in said, said
    assert "nothing is measured" in said and "timer:" not in said
    status, said = gpu_check(machine, "first", *bundle, SLOW_TESTS="1", SECONDS="157")
    assert status == 1 and "tests were not reached in time" in said, said
    assert "ok    timer: 2 of 2 cases measured" in said  # it has its turn
    status, said = gpu_check(machine, "first", VECBANK_GPU_SECONDS="1")
    assert status == 1 and "FAIL  " in said


def test_a_build_that_fails(machine: Path) -> None:
    for phase in ("first", "tests", "profile"):
        status, said = gpu_check(machine, phase, NO_CMAKE="1")
        assert status == 1 and "FAIL  build: status 1" in said and "kernels:" not in said, said
    status, said = gpu_check(machine, "tests", NO_TARGET="_C_cuda", SANITIZER="fine")
    assert status == 1 and "FAIL  _C: status 1" in said and "ok    memcheck" in said and "table" not in said


def test_a_bundle_is_not_built_again(machine: Path) -> None:
    bundle = bundle_of(machine)
    for phase in ("first", "tests", "bench", "profile"):
        status, said = gpu_check(machine, phase, "--bundle", str(bundle), NO_CMAKE="1")
        assert status == 0 and "built " not in said and "other sources" not in said, said
    (bundle / "SOURCES").write_text("0")
    status, said = gpu_check(machine, "first", "--bundle", str(bundle))
    assert status == 1 and "FAIL  bundle: built from other sources" in said and "ok    kernels: 7 of 7" in said
    status, said = gpu_check(machine, "bench", "--bundle", str(bundle), OTHER_PYTHON="1")  # its module is for another
    assert status == 0 and "ok    _C: built _C" in said and "ok    bench" in said, said
    status, said = gpu_check(machine, "first", "--bundle", str(machine))
    assert status == 2 and "holds no vecbank_cuda_tests" in said


def test_tests(machine: Path) -> None:
    status, said = gpu_check(machine, "tests", SM90="0")
    assert status == 0 and "tests: all that ran passed" in said, said
    assert "ok    vecbank: torch 2.11 on Made-up GPU" in said
    at = [said.find(f"ok    {name}: ") for name in ("table", "path_simt", "path_mma16", "path_sm90")]
    assert -1 not in at and at == sorted(at)
    assert log_of(machine).count("vecbank info: one GPU") == 1
    assert "6 passed" in said and "2 skipped" in said  # of two shards
    for tool in ("memcheck", "racecheck"):  # this build has no cuda_gradients
        found = re.search(rf"ok    {tool}: (\d+) of (\d+) groups of tests", said)
        assert found and int(found[1]) == int(found[2]) - 1 > 5


def test_failures_are_named_and_the_rest_goes_on(machine: Path) -> None:
    status, said = gpu_check(machine, "tests", TESTS="1 failed, 2 passed in 1s", TESTS_STATUS="1", SANITIZER="race")
    assert status == 1 and "something failed" in said
    assert "FAIL  table: " in said and "2 failed" in said and "FAILED tests/test_cuda.py::test_one" in said
    assert "FAIL  path_simt: " in said and "not run: path sm90 (error: left out of this build)" in said
    assert "FAIL  racecheck: cuda_search_masks_and_large_k (status 9)" in said and "ok    memcheck" in said
    status, said = gpu_check(machine, "tests", SM90="1", NO_VECBANK="")
    assert status == 1 and "FAIL  path sm90: status 1: error" in said
    status, said = gpu_check(machine, "tests", NO_VECBANK="1")
    assert status == 1 and "FAIL  vecbank: status 1: no module" in said and "ok    memcheck" in said


def test_tests_that_only_skip_did_not_run(machine: Path) -> None:
    status, said = gpu_check(machine, "tests", TESTS="4 skipped in 0.1s", TESTS_STATUS="5", SANITIZER="unable")
    assert status == 2 and "not run: table (no test passed or failed: 8 skipped)" in said
    assert said.count("(Unable to attach)") == 2 and "tests: nothing could run" in said and "all that ran" not in said


def test_tests_when_the_time_is_used_up(machine: Path) -> None:
    status, said = gpu_check(machine, "tests", SLOW="1", SANITIZER="slow", VECBANK_GPU_SECONDS="5")
    assert status == 1 and re.search(r"FAIL  table: (not finished in \d s|no time was left)", said), said
    assert "FAIL  path simt: not finished in time" in said and said.count("(not in time)") == 2
    assert "not run: path sm90 (too little time left" in said  # it is the default path there


def test_bench(machine: Path) -> None:
    status, said = gpu_check(machine, "bench", VECBANK_GPU_SECONDS="60")
    assert status == 0 and "ok    bench: 7 of 9 rows met. - Not run, for want of time: a row" in said, said
    assert "| nearest | 2 ms | met |" in said and "--skip torch.compile" in log_of(machine)
    assert log_of(machine).count("bench/run.py") == 1
    status, said = gpu_check(machine, "bench")  # there is time left for torch.compile
    assert (
        status == 0 and log_of(machine).count("bench/run.py") == 3 and (machine / "out" / "bench_compiled.md").exists()
    )
    status, said = gpu_check(machine, "bench", VECBANK_GPU_SECONDS="60", BENCH_STATUS="1")
    assert status == 1 and "FAIL  bench: 7 of 9 rows met." in said and "reported" in log_of(machine)
    status, said = gpu_check(machine, "bench", VECBANK_GPU_SECONDS="4", SLOW="1")
    assert status == 1 and "FAIL  bench: " in said and "(not finished in time)" in said
    status, said = gpu_check(machine, "bench", VECBANK_GPU_SECONDS="60", ROWS="0 of 0")
    assert status == 2 and "none  bench: 0 of 0 rows met." in said and "bench: nothing could run" in said


def test_profile(machine: Path) -> None:
    status, said = gpu_check(machine, "profile")
    assert status == 0 and said.count("ok    ncu ") == 4 and "Duration usecond 12.3" in said, said
    assert (machine / "out" / "profile.txt").read_text().count("Duration") == 4
    status, said = gpu_check(machine, "profile", NO_KERNEL="^sm90_kernel")
    assert status == 1 and "FAIL  ncu sm90_kernel: nearest-" in said and said.count("ok    ncu ") == 3
    (machine / "bin" / "ncu").unlink()
    if shutil.which("ncu") is None and not Path("/usr/local/cuda/bin/ncu").exists():
        status, said = gpu_check(machine, "profile")
        assert status == 2 and "not run: profile (no ncu)" in said and "profile: nothing could run" in said


def processes(listed: Path) -> list[int]:
    return [int(word) for word in listed.read_text().split()] if listed.exists() else []


def there(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    "phase, ctrl_c, settings, hanging",
    [
        ("first", True, {"HANGS": "tensor_core_accumulation"}, 2),
        ("tests", False, {"SLOW": "1", "SANITIZER": "slow"}, 4),
        ("all", True, {"HANGS": "tensor_core_accumulation"}, 2),
        ("all", False, {"HANGS": "tensor_core_accumulation"}, 2),
    ],
)
def test_a_signal_ends_it_at_once(
    machine: Path, phase: str, ctrl_c: bool, settings: dict[str, str], hanging: int
) -> None:
    """Ctrl-C goes to every process of the terminal's group, TERM to the script alone. What runs would take 60 s."""
    listed, out = machine / "hanging", machine / "out"
    settings = environment(machine, VECBANK_GPU_TEST_SECONDS="60", HANGING=str(listed), **settings)
    started = subprocess.Popen(
        ["bash", str(ROOT / "scripts" / "gpu_check.sh"), phase, str(out)],
        env=settings,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # whatever this process does with it
    )
    try:
        end = time.monotonic() + 40
        while len(processes(listed)) < hanging and time.monotonic() < end:
            time.sleep(0.05)
        assert len(processes(listed)) == hanging
        if ctrl_c:
            os.killpg(started.pid, signal.SIGINT)
        else:
            started.terminate()
        said = started.communicate(timeout=15)[0]  # well below 1 s where the machine is idle
    finally:
        started.kill()
    assert started.returncode == 130, said
    one = "first" if phase == "all" else phase
    assert f"{one}: stopped from outside, " in said and said.count("====") == 1, said
    assert ("all: stopped from outside in phase first" in said) == (phase == "all")
    assert (out / "summary.txt").read_text() == said
    end = time.monotonic() + 10
    while any(map(there, processes(listed))) and time.monotonic() < end:
        time.sleep(0.05)
    assert not [process for process in processes(listed) if there(process)]


def test_the_status_of_all_phases(machine: Path) -> None:
    bundle = ("--bundle", str(bundle_of(machine)))
    quick = {"VECBANK_GPU_SECONDS": "60", "TESTS": "1 skipped in 0.1s", "SANITIZER": "unable"}
    status, said = gpu_check(machine, "all", *bundle, **quick)
    assert status == 0 and "tests: nothing could run" in said and "first: all that ran passed" in said, said
    status, said = gpu_check(machine, "all", *bundle, **quick, FAILS="tensor_core_accumulation")
    assert status == 1 and "first: something failed" in said


def test_the_profiled_kernels_and_cases_exist() -> None:
    script = (ROOT / "scripts" / "gpu_check.sh").read_text()
    listed = [line.split() for line in script.split("<<'KERNELS'\n")[1].split("KERNELS\n")[0].splitlines()]
    kernels = " ".join(path.read_text() for path in (ROOT / "csrc" / "cuda").rglob("*.cu*"))
    assert len(listed) == 4 and all(re.search(rf"\) {name}\w*\(const", kernels) for name, _ in listed)


def test_a_dry_run_walks_all_phases(machine: Path) -> None:
    """With the stand-ins that the script brings along, and none of this file's."""
    without = {"PATH": os.environ["PATH"], "PYTHON": "", "VECBANK_GPU_SHARDS": "2"}
    status, said = gpu_check(machine, "all", "--dry-run", **without)
    assert status == 0, said
    for phase in ("first", "tests", "bench", "profile"):
        assert (
            re.search(f"==== {phase}  .* UTC  stand-in for a GPU", said)
            and f"{phase}: dry run, nothing failed, " in said
        )
    assert "none  timer: 0 of 1 cases measured" in said and "all that ran passed" not in said
    assert "ok    timer's plans: dry run of a stand-in" in said and said.count("ok    ncu") == 4
    assert "not run: table (no test passed or failed: 2 skipped)" in said and "none  bench: 0 of 0" in said
    assert not (machine / "build").exists()  # what it builds is gone
    status, said = gpu_check(machine, "first", "--dry-run", "--bundle", str(bundle_of(machine)), NO_GPU="1")
    assert status == 0 and "not run: 7 tests of the kernels" in said and "ok    timer's plans: dry run: 2 cases" in said


def test_wrong_arguments(machine: Path) -> None:
    assert gpu_check(machine, "second") == (
        2,
        "gpu_check: PHASE must be first, tests, bench, profile or all, got: second\n",
    )
    assert gpu_check(machine, "first", "--fast")[0] == 2 and gpu_check(machine, "first", "more")[0] == 2


def test_arguments_that_would_cost_time_on_the_machine(machine: Path) -> None:
    assert gpu_check(machine, "first", "--bundle") == (
        2,
        "gpu_check: --bundle: expected a folder after it, got: nothing\n",
    )
    assert gpu_check(machine, "first", "--bundle", "--dry-run")[0] == 2
    bundle = bundle_of(machine)
    (bundle / "modules" / "_C_cuda.so").unlink()
    status, said = gpu_check(machine, "first", "--bundle", str(bundle))
    assert status == 2 and "holds no modules/_C_cuda.so (make gpu-bundle" in said
    status, said = gpu_check(machine, "--help")
    assert status == 0 and "--bundle  the folder that" in said and "set -u" not in said
    script = str(ROOT / "scripts" / "gpu_check.sh")
    shutil.rmtree(machine / "out", ignore_errors=True)
    said = subprocess.run(  # paths are found from the folder that it is called in
        ["bash", script, "profile", "out", "--bundle", "none"], cwd=machine, capture_output=True, text=True
    ).stderr
    assert f"{machine}/none holds no vecbank_cuda_tests" in said
    done = subprocess.run(["bash", script, "profile", "out", "--dry-run"], cwd=machine, capture_output=True, text=True)
    assert done.returncode == 0 and (machine / "out" / "summary.txt").exists()
    done = subprocess.run(["bash", script, "first", "/proc/self", "--dry-run"], capture_output=True, text=True)
    assert done.returncode == 2 and "OUT: nothing can be written into" in done.stderr
    for wrong in ("/proc/vecbank", script):
        done = subprocess.run(["bash", script, "first", wrong, "--dry-run"], capture_output=True, text=True)
        expected = "expected a folder, or a path where a folder can be made"
        assert (done.returncode, done.stderr) == (2, f"gpu_check: OUT: {expected}, got: {wrong}\n")


@pytest.mark.parametrize("name", ["SECONDS", "SHARDS", "TEST_SECONDS"])
def test_settings_that_are_no_whole_number(machine: Path, name: str) -> None:
    for wrong in ("abc", "0", "-3", "1.5", "9999999"):
        setting = {f"VECBANK_GPU_{name}": wrong}
        expected = f"gpu_check: VECBANK_GPU_{name}: expected a whole number from 1 to 999999, got: {wrong}\n"
        assert gpu_check(machine, "first", **setting) == (2, expected)
    assert not (machine / "out").exists()


def test_a_path_that_fails_does_not_cost_the_rows(machine: Path) -> None:
    status, said = gpu_check(machine, "bench", SM90="1", VECBANK_GPU_SECONDS="60")
    assert status == 1 and "FAIL  path sm90: status 1: error: left out of this build; the rows leave it out" in said
    assert "--skip torch.compile vecbank sm90" in log_of(machine) and "ok    bench: " in said


def test_a_bench_that_ends_within_a_row_goes_on(machine: Path) -> None:
    status, said = gpu_check(machine, "bench", VECBANK_GPU_SECONDS="80", ENDS_WITHIN="1")
    assert status == 0 and '"running": "topk" ended its process' in said and "ok    bench: 7 of 9" in said
    assert log_of(machine).count("--resume") == 1


def test_the_python_that_has_torch(machine: Path) -> None:
    for name in ("python3", "python3.13"):
        shutil.copy(machine / "bin" / "python", machine / "bin" / name)
    gpu_check(machine, "bench", PYTHON="", TORCHLESS="python3", VECBANK_GPU_SECONDS="60")
    assert "python3.13 bench/run.py" in log_of(machine)


def test_wheels(machine: Path) -> None:
    bundle = bundle_of(machine)
    (bundle / "wheels").mkdir()
    for name in ("broken-1-x.whl", "pytest-1-x.whl"):
        (bundle / "wheels" / name).touch()
    status, said = gpu_check(machine, "bench", "--bundle", str(bundle), VECBANK_GPU_SECONDS="60")
    assert status == 0 and "note: broken-1-x.whl could not be installed" in said and "pytest-1-x.whl" not in said
    assert "==== wheel pytest-1-x.whl (status 0)" in log_of(machine)
    (bundle / "wheels" / "broken-1-x.whl").unlink()
    (machine / "out" / "log.txt").unlink()
    gpu_check(machine, "bench", "--bundle", str(bundle), VECBANK_GPU_SECONDS="60")
    assert "==== wheels (status 0)" in log_of(machine)
    (machine / "out" / "log.txt").unlink()
    gpu_check(machine, "tests", "--bundle", str(bundle))
    assert "==== wheel" not in log_of(machine)  # only the bench needs them


@pytest.mark.parametrize("setting, status, said", [("fine", 0, "ok    memcheck"), ("race", 1, "FAIL  racecheck")])
def test_sanitize_alone(machine: Path, setting: str, status: int, said: str) -> None:
    script = str(ROOT / "scripts" / "cuda_sanitize.sh")
    command = ["bash", script, str(machine / "bin" / "vecbank_cuda_tests"), "20"]
    settings = environment(machine, SANITIZER=setting)
    done = subprocess.run(command, env=settings, capture_output=True, text=True)
    assert done.returncode == status and said in done.stdout
    (machine / "bin" / "compute-sanitizer").unlink()
    done = subprocess.run(command, env=settings, capture_output=True, text=True)
    assert done.returncode == 0 and "no compute-sanitizer" in done.stdout


def test_the_sanitized_tests_exist() -> None:
    sources_ = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.*") if path.suffix in (".h", ".cu"))
    tests = re.findall(r"^TEST\((\w+)\)", sources_, re.M)
    script = (ROOT / "scripts" / "cuda_sanitize.sh").read_text()
    lists = re.findall(r'\[(?:memcheck|racecheck)\]="([^"]*)"', script)
    assert len(lists) == 2 and len(tests) > 20
    assert not [name for names in lists for name in names.split() if not any(name in test for test in tests)]


# ---- The bundle -----------------------------------------------------------------------------------------------------


def test_a_bundle_carries_what_its_wheels_need(tmp_path: Path) -> None:
    wheel = tmp_path / "one_thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        needs = ("torch>=2", "Other.Thing", 'docs-only; extra == "docs"', 'colorama; sys_platform=="win32"')
        archive.writestr("one_thing-1.0.dist-info/METADATA", "".join(f"Requires-Dist: {need}\n" for need in needs))
    assert gpu_bundle.absent([wheel], {"torch"}) == [f"{wheel.name} needs Other.Thing"]
    assert gpu_bundle.absent([wheel], {"torch", "other-thing"}) == []
    assert gpu_bundle.version_of("/usr/bin/python3.12") == "3.12"
    with pytest.raises(SystemExit, match="a name like python3.12"):
        gpu_bundle.version_of("python")


def test_the_checksum_of_sources_is_that_of_this_tree() -> None:
    assert re.fullmatch(r"[0-9a-f]{16}\n", sources()) and sources() == sources()


def test_predictions_are_well_formed() -> None:
    """vecbank_cuda_timer --dry-run checks them against its cases; this is what can be seen without nvcc."""
    lines = (ROOT / "bench" / "cuda_predictions.csv").read_text().splitlines()
    rows = [line.split(",", 3) for line in lines if line and not line.startswith("#")]
    assert rows and all(len(row) == 4 and float(row[2]) > 0 and row[3] for row in rows)
    assert len({(row[0], row[1]) for row in rows}) == len(rows)


def test_each_cuda_folder_says_once_what_has_run() -> None:
    """The README of a folder is the one place that says so; sources do not repeat it, and docs/cuda.md agrees."""
    cuda = ROOT / "csrc" / "cuda"
    readmes = sorted(cuda.rglob("README.md"))
    folders = {path.parent.name for path in cuda.rglob("*.cu")}
    assert [path.parent.name for path in readmes] == sorted(folders) == ["cuda", "library", "tensor_cores"]
    said = [line for path in readmes for line in path.read_text().splitlines() if line.startswith("**What has run:**")]
    truth = "all kernels of this folder have run on one GPU, an NVIDIA H200 (9.0)"
    assert len(said) == len(readmes) and all(truth in line for line in said)
    sources = [path for path in cuda.rglob("*") if path.suffix in (".cu", ".cuh", ".h")]
    assert sources and not [p.name for p in sources if re.search(r"(?i)never (been )?run|has run\b", p.read_text())]
    page = (ROOT / "docs" / "cuda.md").read_text()
    assert "**All kernels have run on one GPU, an NVIDIA H200**" in page
    assert "They have never run on 8.0, 8.6, 8.9 or 10.0" in page and "| 8.0, 8.6, 8.9, 10.0 | 5.5 | never |" in page
    table = page.split("| kernels | predicted ms | H200, ms |")[1].split("\n\n")[0]
    assert len(table.splitlines()) > 10 and "never" not in table
    stale = re.compile(r"(?i)no kernel.{0,20} has (ever )?run|has never (been )?run|no row has ever|never run on a GPU")
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "bench" / "cuda_run.py", *(ROOT / "docs").glob("*.md")]
    pages += (ROOT / "scripts").glob("*.sh")
    assert not [path.name for path in pages if stale.search(path.read_text())]
