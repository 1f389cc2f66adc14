"""Execute the notebooks and keep what they put out: those whose code has changed since then, the named ones, or `--all`.

The metadata of a notebook hold a hash of its code cells and of what they put out. `.ci/check.py` compares it with what is there now.
"""
import base64, hashlib, io, json, os, re, subprocess, sys, tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TINY = "train_cfg.max_epochs=1 train_dataloader.dataset.indices=64 val_dataloader.dataset.indices=16"
# parameters of the example that is shown, in place of the defaults; RUNS is a folder that is made for them, RUN the id of the run in it
EXAMPLES = {"nbs/train.ipynb": dict(runs_dir="RUNS"), "nbs/evaluate.ipynb": dict(runs_dir="RUNS", run="RUN"),
            "nbs/predict.ipynb": dict(runs_dir="RUNS", run="RUN", images="SHAPES", shown=8), "nbs/sweep.ipynb": dict(runs_dir="RUNS", table=4, seeds=1, overrides=TINY)}
LONG = ["nbs/14_torchvision.ipynb"]  # begun first


def code_hash(nb: dict) -> str:
    "Of the code cells and of what they put out"
    cells = [("".join(c["source"]), c.get("outputs", [])) for c in nb["cells"] if c["cell_type"] == "code"]
    return hashlib.sha256(json.dumps(cells, sort_keys=True).encode()).hexdigest()[:16]


def source_hash(nb: dict) -> str:
    return code_hash({"cells": [{**c, "outputs": []} for c in nb["cells"]]})


def is_shown(nb: dict) -> bool:
    return nb["metadata"].get("executed") == code_hash(nb)


def notebooks() -> list[Path]:
    return sorted(p for p in ROOT.glob("nbs/**/*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def small(png: str) -> str:  # base64
    "A picture with 256 colours, which is a third of the size"
    from PIL import Image
    image, out = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), io.BytesIO()
    image.quantize(256, method=Image.Quantize.MAXCOVERAGE).save(out, "PNG", optimize=True)  # keeps rare colours
    return base64.b64encode(out.getvalue()).decode()


def cleaned(outputs: list, places: dict[str, str]) -> list:
    "Outputs without warnings, progress bars and widgets; a place on this machine has a name that is the same everywhere"
    def text(s: str) -> str:
        for place, name in places.items(): s = s.replace(place, name)
        s = re.sub(r"/tmp/(?:[\w.-]+/)*?tmp\w{8}", "/tmp/folder", s)
        s = re.sub(r"^(?:\d\d:\d\d )?(\d+ of \d+ done.*?)(, [^,]* left)?$", r"\1", s, flags=re.M)  # times in the log of a sweep
        for k, id in enumerate(dict.fromkeys(re.findall(r"T_[0-9a-f]{5}(?=[_\" ])", s))): s = s.replace(id, f"T_{k:05d}")  # tables of pandas
        return s
    out = []
    for o in outputs:
        if o.get("name") == "stderr": continue
        if "text" in o: o["text"] = re.sub(r"^.*?\d+%\|.*\n?", "", text(o["text"]), flags=re.M)  # progress bars
        data = o.get("data", {})
        if "application/vnd.jupyter.widget-view+json" in data: continue
        for kind, content in data.items():
            if kind == "image/png": data[kind] = small(content)
            elif isinstance(content, str): data[kind] = text(content)
        if o.get("text") != "": out.append(o)
    return out


def execute(path: Path, values: dict, places: dict[str, str]) -> None:
    "Run the cells from top to bottom, `values` in place of the defaults in the cell of parameters"
    import nbformat
    from nbclient import NotebookClient
    nb = nbformat.read(path, 4)
    before = [c.source for c in nb.cells]
    run = nbformat.from_dict(json.loads(json.dumps(nb)))
    for c in run.cells:
        if c.cell_type == "code": c.outputs = []
        if c.cell_type == "code" and re.search(r"^#\| *eval: *false", c.source, re.M): c.source = ""
        if "parameters" in c.metadata.get("tags", []): c.source += "".join(f"\n{k} = {v!r}" for k, v in values.items())
    NotebookClient(run, timeout=None, kernel_name="python3", extra_arguments=["--IPKernelApp.log_level=40"], resources={"metadata": {"path": str(path.parent)}}, coalesce_streams=True).execute()
    for c, done in zip(nb.cells, run.cells):
        if c.cell_type == "code": c.outputs = [] if re.match(r"#\| *hide\b(?!_)", c.source) else cleaned(done.outputs, places)
    if before != [c.source for c in nbformat.read(path, 4).cells]: raise RuntimeError("it was edited meanwhile, and is left as it is: run again")
    nb.metadata["executed"] = source_hash(nb)  # until it is cleaned
    nbformat.write(nb, path)
    print("executed", path.relative_to(ROOT), flush=True)


def main(names: list[str]) -> int:
    every = {str(p.relative_to(ROOT)): p for p in notebooks()}
    names = [n.removeprefix("./") for n in names]
    if unknown := [n for n in names if n not in every and n != "--all"]: sys.exit(f"{unknown[0]} is no notebook of nbs/: give a path like nbs/10_hlr.ipynb, or --all")
    todo = [n for n in every if "--all" in names or n in names or not names and not is_shown(json.loads(every[n].read_text()))]
    examples = [n for n in EXAMPLES if n in todo]
    if examples and examples != ["nbs/sweep.ipynb"] and "nbs/train.ipynb" not in todo: examples.insert(0, "nbs/train.ipynb")  # the others need its run
    with tempfile.TemporaryDirectory() as tmp, ThreadPoolExecutor(2) as pool:
        runs, cache = Path(tmp) / "runs", os.environ.get("PISA_DATA", str(Path.home() / ".cache/pisa/data"))
        runs.mkdir()
        (runs / "records").symlink_to(ROOT / "runs/records")
        places = {str(runs): "runs", f"{ROOT}/": "", str(ROOT): ".", cache: "/data", str(Path.home()): "~"}

        def one_by_one() -> None:
            for n in examples:
                found = {"RUNS": str(runs), "RUN": next((p.name for p in sorted(runs.glob("faster_rcnn-pisa*/weights.pth")) for p in [p.parent]), ""),
                         "SHAPES": str(next(Path(cache).glob("shapes/*-2000-500/val"), ""))}
                execute(every[n], {k: found.get(v, v) if isinstance(v, str) else v for k, v in EXAMPLES[n].items()}, places)
        jobs = {pool.submit(one_by_one): "examples"} if examples else {}
        jobs |= {pool.submit(execute, every[n], {}, places): n for n in sorted(set(todo) - set(examples), key=lambda n: (n not in LONG, n))}
        try: failed = {name: e for job, name in jobs.items() if (e := job.exception())}
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            sys.exit("stopped: the notebooks that were finished keep their outputs, the others are as they were; run it again")
    if todo: subprocess.run(["nbdev_clean"], cwd=ROOT, check=True)
    for n in {*todo, *examples} - {*failed}:
        nb = json.loads(every[n].read_text())
        if nb["metadata"].get("executed") != source_hash(nb): continue  # an example that failed, or it was edited meanwhile
        nb["metadata"]["executed"] = code_hash(nb)
        every[n].write_text(json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
    for name, e in failed.items(): print(f"{name}: {e}")
    print(f"{len(todo)} of {len(every)} notebooks were to be executed, {len(failed)} failed")
    return bool(failed)


if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
