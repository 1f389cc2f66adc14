#!/usr/bin/env python3
"""Make the virtual environment that `make` uses, or bring it up to date: python .ci/setup_venv.py VENV

Needs only Python's standard library, 3.11 to 3.13. What is installed already is kept. So after a failure, or after a pin has changed, the same
command does only what is missing.
"""
from __future__ import annotations
import configparser, os, re, shutil, subprocess, sys, time, venv
from pathlib import Path
import mmcv_wheel

ROOT = Path(__file__).resolve().parents[1]
PINS = ROOT / "constraints.txt"


def steps() -> list[tuple[str, str, list[str]]]:
    "(name, what the reader should know, arguments of pip install; none: mmcv's wheel), in the order that they need each other"
    reqs = configparser.ConfigParser()
    reqs.read(ROOT / "settings.ini")
    rest = " ".join(v for k, v in reqs["DEFAULT"].items() if k.endswith("requirements")).split()
    return [
        ("tools", "pip, setuptools, ninja", ["pip", "setuptools", "wheel", "ninja", "psutil"]),
        ("torch", "torch and torchvision: up to 3 GB to download", ["torch", "torchvision", "numpy"]),
        ("mmcv", "mmcv: C++ from source, 1.5 to 3 minutes on 2 cores, once", []),
        ("rest", "mmdet, JupyterLab, papermill, nbdev and the rest", rest),
        # imaug brings opencv's headless build, mmengine the one that needs libGL; both own the same folder: the last one wins
        ("opencv", "the build of OpenCV that needs no display", ["--force-reinstall", "--no-deps", "opencv-python-headless"]),
        ("pisa", "this package, editable", ["--no-build-isolation", "--no-deps", "-e", str(ROOT)]),
    ]


class Progress:
    "Shows how far a step of pip is: on a terminal a line that is written over, in a log a line now and then"
    def __init__(self): self.file, self.printed = "", ""

    def __call__(self, line: str) -> None:
        text = rest = ""
        if m := re.match(r" *Downloading (\S+) \((.*)\)", line): self.file = m[1]
        if m := re.match(r"Progress (\d+) of (\d+)", line):
            done, total = int(m[1]), int(m[2])
            if total > 3e7: text, rest = f"{self.file.split('-')[0]}: {100*done//total // 25 * 25}% of {total/1e6:.0f} MB", f"{done/1e6:.0f}"
        if line.startswith("Installing collected packages: ") and len(line) > 200: text = "unpacking"
        if m := re.match(r"\s*\[(\d+)/(\d+)\] ", line): text = f"compiled {m[1]} of {m[2]} files"
        if not text or (not sys.stdout.isatty() and text == self.printed): return
        self.printed = text
        if sys.stdout.isatty(): print(f"\r      {text} {rest}".ljust(100), end="", flush=True)
        else: print("      " + text, flush=True)


def main(folder: str) -> int:
    env_dir = Path(folder).absolute()
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        print(f"pisa: Python 3.11, 3.12 or 3.13 is needed; this is {sys.version.split()[0]}. "
              "Give an interpreter with: make PYTHON=/path/to/python3.13", file=sys.stderr)
        return 1
    python, logs = env_dir / "bin" / "python", env_dir / "logs"
    if not python.exists():
        print(f"pisa: new virtual environment in {env_dir}", flush=True)
        try: venv.create(env_dir, with_pip=True)
        except subprocess.CalledProcessError:
            shutil.rmtree(env_dir)
            print("pisa: this Python cannot make environments. Install what it lacks (on Debian and Ubuntu: apt install python3-venv), "
                  "or give another: make PYTHON=/path/to/python3.13", file=sys.stderr)
            return 1
    logs.mkdir(exist_ok=True)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONUNBUFFERED": "1"}
    todo = steps()
    for n, (name, what, args) in enumerate(todo, 1):
        print(f"[{n}/{len(todo)}] {what}", flush=True)
        log, start = logs / f"{name}.log", time.time()
        log.write_text("")

        def pip(args: list, more: dict = {}, raw: bool = name != "tools") -> bool:
            show = Progress()
            with open(log, "a") as out:
                # the pip of a new environment may be too old for raw progress, and upgrades itself first
                bar = ["--progress-bar", "raw"] if raw and args[0] != "wheel" else []
                p = subprocess.Popen([python, "-m", "pip", args[0], *bar, "-c", PINS, *args[1:]], env=env | more, text=True,
                                     stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace")
                for line in p.stdout:
                    if not line.startswith("Progress "): out.write(line)
                    show(line)
            if sys.stdout.isatty() and show.printed: print()
            return p.wait() == 0

        done = False
        if args: done = pip(["install", *args])
        else:
            try: wheel = mmcv_wheel.build(python, PINS, pip)
            except OSError as e:
                print(f"pisa: mmcv's wheel cannot be kept ({e}): give a folder that can be written to, XDG_CACHE_HOME=/path", file=sys.stderr)
                return 1
            done = wheel and pip(["install", "--force-reinstall", "--no-deps", str(wheel)])
        if not done:
            tail = [l for l in log.read_text(errors="replace").splitlines() if l.strip()][-15:]
            print("\n".join("      " + l[:200] for l in tail))
            print(f"pisa: set-up stopped in step '{name}' (whole output: {log}).\n"
                  f"      Run the same command again to go on from this step; 'rm -r {env_dir}' starts over.", file=sys.stderr)
            return 1
        print(f"      done in {(time.time() - start) / 60:.1f} min", flush=True)
    print(f"ready; activate it with: source {env_dir}/bin/activate")
    return 0


if __name__ == "__main__": sys.exit(main(sys.argv[1]) if len(sys.argv) == 2 and not sys.argv[1].startswith("-") else print(__doc__) or 2)
