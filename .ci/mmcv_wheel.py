"""Build mmcv's wheel from source in 1.5 to 3 minutes on 2 cores, and keep it in the user's cache.

mmcv has no wheel for a current torch. Its own build compiles 78 C++ files with debugging information, and each parses torch's headers anew:
7 minutes. Here the files are gathered into 8, without debugging information. Where that fails, all 78 are compiled one by one.
"""
from __future__ import annotations
import hashlib, os, shutil, subprocess, tarfile, tempfile
from collections.abc import Callable
from pathlib import Path

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
FLAGS = "-O2 -DNDEBUG -g0"  # setuptools takes these in place of Python's own flags; without -O2, mmcv's NMS takes four times as long
ALONE = {"bezier_align", "roi_align", "roi_align_rotated", "rotated_feature_align",  # each defines `PreCalc` or a gradient of one name
         "psamask"}  # defines the macros `min` and `max`


def cached(python: Path, constraints: Path) -> Path:
    "The folder for the wheel, one for each mmcv, torch, Python and version of this file. It may be empty, or not there"
    code = "import sys, torch; print(sys.implementation.cache_tag, torch.__version__, torch.cuda.is_available())"
    about = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    pin, = (line for line in constraints.read_text().splitlines() if line.startswith("onedl-mmcv=="))
    key = hashlib.sha256((about + pin + Path(__file__).read_text()).encode()).hexdigest()[:12]
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pisa" / "wheels" / f"{pin.replace('==', '-')}-{key}"


def gather(csrc: Path) -> None:
    "Replace the C++ files of a folder by three that include them; `setup.py` compiles what ends in .cpp"
    for name, folder, n in (("a", csrc, 2), ("b", csrc / "cpu", 1)):
        files = sorted(f for f in folder.glob("*.cpp") if name == "a" or f.stem not in ALONE)
        files = [f.rename(f.with_suffix(".inc")) for f in files]
        # these names sort first, so the longest compilations start first
        for i in range(n): (folder / f"a{name}{i}.cpp").write_text("".join(f'#include "{f.name}"\n' for f in files[i::n]))


def build(python: Path, constraints: Path, run: Callable[[list, dict], bool]) -> Path | None:
    "The wheel, from the cache or built now; None: it cannot be built. `run` is given pip's arguments and environment variables"
    cache = cached(python, constraints)
    if found := [*cache.glob("*.whl")]: return found[0]
    cache.mkdir(parents=True, exist_ok=True)  # fails now, not after the build
    cpp20 = lambda setup: setup.write_text(setup.read_text().replace("-std=c++17", "-std=c++20"))  # which torch's headers ask for
    with tempfile.TemporaryDirectory() as tmp:
        if not run(["download", "--no-deps", "--no-build-isolation", "--no-binary=onedl-mmcv", "-d", tmp, "onedl-mmcv"], {}): return None
        sdist, = Path(tmp).glob("onedl_mmcv-*.tar.gz")
        for way in ("gathered", "plain"):
            with tarfile.open(sdist) as tar: tar.extractall(f"{tmp}/{way}")
            source, = Path(tmp, way).iterdir()
            cpp20(source / "setup.py")
            if way == "gathered": gather(source / "mmcv/ops/csrc/pytorch")
            else: print("      the fast build failed: all files are compiled one by one, about 7 minutes on 2 cores", flush=True)
            if run(["wheel", "-v", "--no-deps", "--no-build-isolation", "-w", f"{tmp}/wheel", str(source)],
                   {"MAX_JOBS": os.environ.get("MAX_JOBS", str(CORES)), "CFLAGS": f"{FLAGS} {os.environ.get('CFLAGS', '')}"}):
                wheel, = Path(tmp, "wheel").glob("*.whl")
                shutil.copy(wheel, cache / f".{os.getpid()}")
                return (cache / f".{os.getpid()}").rename(cache / wheel.name)
    return None
