#!/usr/bin/env python3
"""Make the virtual environment that `make` uses: python .ci/setup_venv.py VENV

Needs only Python's standard library. Each finished step is remembered in VENV, so that after a failure the same
command goes on where it stopped. mmcv has no wheel for this torch and is built from source, once: pip's wheel cache
keeps the result for the next environment.
"""
from __future__ import annotations
import configparser, os, re, subprocess, sys, time, venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def steps() -> list[tuple[str, str, list[str]]]:
    "(name, what the reader should know, arguments of pip install), in the order that they need each other"
    cfg = configparser.ConfigParser()
    cfg.read(ROOT / "settings.ini")
    reqs = cfg["DEFAULT"]
    rest = (reqs["requirements"] + " " + reqs["mmdet_requirements"] + " " + reqs["dev_requirements"]).split()
    return [
        ("tools", "pip, setuptools, ninja", ["pip", "setuptools>=80,<82", "wheel", "ninja", "psutil"]),
        ("torch", "torch and torchvision, about 3 GB to download", ["torch", "torchvision"]),
        ("mmcv", f"onedl-mmcv, C++ built from source: about 13 minutes on 2 cores, once (here: {CORES} cores)",
         ["-v", "--no-build-isolation", "onedl-mmcv"]),
        ("rest", "mmdet, JupyterLab, papermill, nbdev and the rest", rest),
        # imaug brings opencv's headless build, mmengine the one that needs libGL; both own the same folder: the last one wins
        ("opencv", "the build of OpenCV that needs no display", ["--force-reinstall", "--no-deps", "opencv-python-headless"]),
        ("pisa", "this package, editable", ["--no-build-isolation", "--no-deps", "-e", str(ROOT)]),
    ]


def show(line: str, t0: float, state: dict) -> None:
    "One line a compiled file on a terminal (overwritten), one line every 10% in a log"
    if not (m := re.search(r"\[(\d+)/(\d+)\] ", line)): return
    done, total = int(m[1]), int(m[2])
    if total < 20: return
    spent = time.time() - t0
    text = f"      compiled {done} of {total} files, {spent / 60:.1f} min, about {spent / done * (total - done) / 60:.0f} min left"
    if sys.stdout.isatty(): print("\r" + text.ljust(90), end="" if done < total else "\n", flush=True)
    elif (tenth := done * 10 // total) != state.get("tenth"):
        state["tenth"] = tenth
        print(text, flush=True)


def main(folder: str) -> int:
    env_dir = Path(folder).absolute()
    if sys.version_info[:2] != (3, 11):
        print(f"pisa: the pins of constraints.txt were seen to work on Python 3.11; this is {sys.version.split()[0]}. "
              "Give another interpreter with: make PYTHON=/path/to/python3.11", file=sys.stderr)
        return 1
    python = env_dir / "bin" / "python"
    if not python.exists():
        print(f"pisa: new virtual environment in {env_dir}", flush=True)
        venv.create(env_dir, with_pip=True)
    pins = (ROOT / "constraints.txt").read_text()
    marks, logs = env_dir / ".pisa-steps", env_dir / "logs"
    marks.mkdir(exist_ok=True), logs.mkdir(exist_ok=True)
    env = dict(os.environ, MAX_JOBS=os.environ.get("MAX_JOBS", str(CORES)), PIP_DISABLE_PIP_VERSION_CHECK="1", PYTHONUNBUFFERED="1")
    env.pop("PYTHONPATH", None)
    todo = steps()
    for n, (name, what, args) in enumerate(todo, 1):
        mark, key = marks / name, pins + repr(args)
        if mark.exists() and mark.read_text() == key: continue
        print(f"[{n}/{len(todo)}] {what}", flush=True)
        log, t0, state = logs / f"{name}.log", time.time(), {}
        with open(log, "w") as out:
            p = subprocess.Popen([python, "-m", "pip", "install", "-c", ROOT / "constraints.txt", *args], env=env, text=True,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace")
            for line in p.stdout:
                out.write(line)
                show(line, t0, state)
        if p.wait():
            tail = [l for l in log.read_text(errors="replace").splitlines() if l.strip()][-15:]
            print("\n".join("      " + l[:200] for l in tail))
            print(f"pisa: set-up stopped in step '{name}' (whole output: {log}).\n"
                  f"      Run the same command again to go on from this step; 'rm -r {env_dir}' starts over.", file=sys.stderr)
            return 1
        mark.write_text(key)
        print(f"      done in {(time.time() - t0) / 60:.1f} min", flush=True)
    return 0


if __name__ == "__main__": sys.exit(main(*sys.argv[1:]) if len(sys.argv) == 2 else print(__doc__) or 2)
