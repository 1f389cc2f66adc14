"""Check that the notebooks are clean and show what their code puts out, and that pisa/ is exactly what they export; says what to do where not.

Both are done again on a copy, and the copy is compared with the original: the working tree is not touched.
"""
import filecmp, json, os, shutil, subprocess, sys, tempfile
from pathlib import Path
from show import is_shown, notebooks

ROOT = Path(__file__).resolve().parents[1]


def files(folder: Path, *patterns: str) -> set[str]:
    return {str(p.relative_to(folder)) for pattern in patterns for p in folder.glob(pattern)
            if not {"__pycache__", ".ipynb_checkpoints"} & set(p.parts)}


def main() -> int:
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp) / "pisa"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "figures", "__pycache__", ".ipynb_checkpoints"))
        for f in copy.glob("pisa/**/*.py"):
            if f.name != "__init__.py": f.unlink()
        env = dict(os.environ, PYTHONPATH=str(copy))
        for command in (["nbdev_clean"], ["nbdev_export"]):
            p = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True)
            if p.returncode:
                print(p.stdout + p.stderr + f"check: {command[0]} failed")
                return 1
        names = files(ROOT, "nbs/**/*.ipynb", "pisa/**/*.py") | files(copy, "nbs/**/*.ipynb", "pisa/**/*.py")
        wrong = sorted(n for n in names if not ((ROOT / n).exists() and (copy / n).exists() and filecmp.cmp(ROOT / n, copy / n, shallow=False)))
    if wrong:
        ran = [n for n in wrong if n.endswith(".ipynb")]
        if ran: print("check: run and saved, or edited, but not cleaned: " + ", ".join(ran) + "\n       `make export` cleans them; `git checkout nbs` undoes all that was done to them")
        if len(ran) < len(wrong): print("check: not what the notebooks export: " + ", ".join(n for n in wrong if n not in ran) + "\n       Edit notebooks only, then run `make export` and commit both")
        return 1
    if old := [str(p.relative_to(ROOT)) for p in notebooks() if not is_shown(json.loads(p.read_text()))]:
        print(f"check: changed since they were executed: {', '.join(old)}\n       `make shown` executes them and keeps what they put out")
        return 1
    print(f"check: {len(names)} notebooks and modules, clean and in step")
    return 0


if __name__ == "__main__": sys.exit(main())
