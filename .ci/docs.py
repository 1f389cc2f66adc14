"""Render the notebooks to a static site in _docs/: one page each, with links between them, formulas as MathML, and long code folded; works offline."""
import html, json, re, shutil, sys
from pathlib import Path
import nbformat
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

ROOT = Path(__file__).resolve().parents[1]
SHELVES = {"pisa": ["nbs/index.ipynb"], "The method": ["nbs/1[0-3]*.ipynb"], "Plug-ins": ["nbs/14*.ipynb", "nbs/mmdet/*.ipynb"],
           "To run": [f"nbs/{n}.ipynb" for n in ("train", "evaluate", "predict", "sweep", "bench")],
           "Results": ["nbs/paper/*.ipynb", "nbs/when.ipynb", "nbs/implementations.ipynb"], "The lab": ["nbs/lab/*.ipynb"]}
LONG = 14  # lines of a cell from which on it is folded
STYLE = """
body { margin: 0; display: flex; font: 16px/1.55 system-ui, sans-serif; color: #222; }
nav { flex: 0 0 15rem; height: 100vh; position: sticky; top: 0; overflow: auto; box-sizing: border-box; padding: 1rem; background: #f6f7f9; font-size: 14px; }
nav b { display: block; margin: .9rem 0 .2rem; } nav a { display: block; padding: .1rem 0; color: #345; text-decoration: none; } nav a.here { font-weight: 600; color: #000; }
main { flex: 1; min-width: 0; max-width: 56rem; padding: 1rem 2.5rem 6rem; } a { color: #0b5394; }
h1 { margin-top: .5rem; } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ddd; } blockquote { margin: 0; color: #666; font-size: 1.1rem; }
pre { overflow: auto; font-size: 12px; line-height: 1.4; margin: .4rem 0; } .highlight, main > pre { background: #f6f7f9; border-radius: 4px; padding: .1rem .7rem; margin: .6rem 0; }
.output pre { white-space: pre-wrap; padding-left: .8rem; border-left: 3px solid #cde; } .anchor-link { display: none; }
summary { cursor: pointer; color: #567; font-size: 14px; } img { max-width: 100%; } code { font-size: 90%; }
table { border-collapse: collapse; font-size: 14px; display: block; overflow: auto; } td, th { padding: .2rem .5rem; border-bottom: 1px solid #e4e4e4; text-align: left; } table.dataframe { border: 0; } .dataframe td, .dataframe th { border-width: 0 0 1px; }
@media (max-width: 60rem) { body { display: block; } nav { height: auto; position: static; } main { padding: 1rem; } }
"""


def pages() -> dict[str, list[Path]]:
    return {shelf: [p for pattern in patterns for p in sorted(ROOT.glob(pattern))] for shelf, patterns in SHELVES.items()}


def title(path: Path) -> str:
    return path.stem if path.parent.name == "lab" or path.stem[0].isdigit() else json.loads(path.read_text())["cells"][0]["source"][0].strip("# \n")


def markdown(source: str) -> str:
    "Formulas become MathML, links to notebooks links to their pages; code stays as it is"
    def prose(text: str) -> str:
        text = re.sub(r"\$\$(.+?)\$\$", lambda m: convert(m[1], display="block"), text, flags=re.S)
        text = re.sub(r"\$(?!\s)([^$\n]+?)(?<!\s)\$(?!\d)", lambda m: convert(m[1]), text)
        return re.sub(r"\]\(((?!https?:)[^)#]+\.ipynb)", lambda m: "](" + m[1].removesuffix(".ipynb") + ".html", text)
    parts = re.split(r"(```.*?```|`[^`\n]*`)", source, flags=re.S)
    return "".join(part if i % 2 else prose(part) for i, part in enumerate(parts))


def body(path: Path, exporter: HTMLExporter) -> str:
    nb, out = nbformat.read(path, 4), []
    for cell in nb.cells:
        if cell.cell_type == "raw" or re.match(r"#\| *(hide|default_exp)", cell.source): continue
        if cell.cell_type == "markdown": cell.source = markdown(cell.source)
        for o in cell.get("outputs", ()):
            if "text/markdown" in o.get("data", {}): o.data = {"text/markdown": markdown(o.data["text/markdown"])}
        shown = not re.match(r"#\| *echo: *false", cell.source)
        exported, lines = bool(re.match(r"#\| *export", cell.source)), cell.source.count("\n")
        if cell.cell_type == "code": cell.source = re.sub(r"^#\|.*\n", "", cell.source)
        part, _ = exporter.from_notebook_node(nbformat.v4.new_notebook(cells=[cell], metadata=nb.metadata))
        if not shown: part = re.sub(r'<div class="highlight.*?</pre>\s*</div>', "", part, count=1, flags=re.S)
        elif cell.cell_type == "code" and lines > LONG and (at := re.search(r'<div class="highlight.*?</pre>\s*</div>', part, re.S)):
            names = ", ".join(re.findall(r"^(?:def|class) (\w+)", cell.source, re.M)) or f"{lines} lines"
            part = part[:at.start()] + f"<details><summary>{'exported' if exported else 'code'}: {html.escape(names)}</summary>{at[0]}</details>" + part[at.end():]
        out.append(part)
    return "".join(out)


def main() -> None:
    out, shelves = ROOT / "_docs", pages()
    if left := {*ROOT.glob("nbs/**/[!.]*.ipynb")} - {p for own in shelves.values() for p in own}: sys.exit(f"{min(left)} is on no shelf: add it to SHELVES in .ci/docs.py")
    exporter = HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(ROOT / "nbs", out, ignore=lambda folder, names: [n for n in names if not (Path(folder, n).is_dir() or n.endswith((".png", ".py")))])
    (out / "style.css").write_text(STYLE + HtmlFormatter(style="default").get_style_defs(".highlight"))
    for path in (p for own in shelves.values() for p in own):
        up = "../" * (len(path.relative_to(ROOT / "nbs").parts) - 1)
        menu = "".join(f"<b>{shelf}</b>" + "".join(f'<a href="{up}{p.relative_to(ROOT / "nbs").with_suffix(".html")}"{" class=here" * (p == path)}>{html.escape(title(p))}</a>' for p in own)
                       for shelf, own in shelves.items())
        text = (f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title(path))} · pisa</title>'
                f'<link rel="stylesheet" href="{up}style.css"><nav>{menu}</nav><main>{body(path, exporter)}</main></html>')
        (out / path.relative_to(ROOT / "nbs").with_suffix(".html")).write_text(text)
    print(f"{sum(map(len, shelves.values()))} pages: open {out / 'index.html'} in a browser")


if __name__ == "__main__": sys.exit(main())
