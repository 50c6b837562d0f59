# The batch: which runs are missing, what runs where, and the pages made of them.
#
#   snakemake                                   every chapter at the book's scale, then the pages (`make book`)
#   snakemake --config scale=smoke execute_all  every chapter at another scale, without pages
#   snakemake sweep --config chapter=template seeds='[0, 1, 2]' samples='[1000, 10000]'
#   snakemake sweep --config sweep=grid.yml     the same from a file: one or a list of {chapter, scale, grid}
#   snakemake -n                                what would run
#   snakemake --executor slurm --jobs 50        on a cluster (pip install snakemake-executor-plugin-slurm)
#
# A run's folder is named by the content of all that decides it (lib/runs/fingerprint.py). So a rule never asks whether
# something is out of date, only whether it exists: no dates, and nothing to do when nothing has changed. Each run is a
# process of its own that needs this folder and the Python of this environment, and no state besides: on a cluster the
# folder must lie where all nodes see it. A killed batch is started again by the same command.

import atexit
import csv
import hashlib
import itertools
import json
import os
import shlex
import sys
import time
from pathlib import Path

import yaml

ROOT = Path(workflow.basedir)
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

from lib.runs.parameters import read_parameters
from lib.runs.request import chapters, read_chapter, run_folder

workdir: ROOT

STARTED = time.time()
SCALE = config.get("scale", "book")
PYTHON = shlex.quote(sys.executable)
# A guess that Slurm and Kubernetes need; a chapter's own need is on the book's status page.
MEMORY_MB = {"smoke": 2000, "book": 2500, "paper": 16000}
MINUTES = {"smoke": 10, "book": 60, "paper": 2880}

REQUESTS = {}  # evidence file -> arguments of lib.run that make it
REFUSED = {}  # evidence file -> why the request cannot run


def request(chapter, scale, overrides):
    """Note a run; returns its evidence file."""
    evidence = (run_folder(chapter, scale, overrides, ROOT) / "evidence.json").relative_to(ROOT).as_posix()
    pairs = [["-p", name, value if isinstance(value, str) else json.dumps(value)] for name, value in overrides.items()]
    REQUESTS[evidence] = shlex.join([chapter, "--scale", scale, *itertools.chain(*pairs)])
    return evidence


def chapter_request(chapter):
    """As `request`, but a chapter that cannot run fails as its own job, beside the others."""
    try:
        return request(chapter, SCALE, {})
    except ValueError as error:
        evidence = f"runs/{SCALE}/{chapter}/refused/evidence.json"
        REQUESTS[evidence] = shlex.join([chapter, "--scale", SCALE])
        REFUSED[evidence] = f"{chapter}: {error}"
        return evidence


def points(spec):
    """The points of one grid: a value of each listed parameter; a list parameter takes one element a point."""
    chapter, scale = spec["chapter"], spec.get("scale", "book")
    declared = read_parameters(read_chapter(chapter, ROOT), f"notebooks/{chapter}.md")
    grid = {}
    for name, values in (spec.get("grid") or {}).items():
        annotation = declared[name].annotation if name in declared else ""
        values = values if isinstance(values, list) else [values]
        if annotation != "str":  # the command line hands text over
            values = [yaml.safe_load(value) if isinstance(value, str) else value for value in values]
        if annotation.startswith("list"):
            values = [value if isinstance(value, list) else [value] for value in values]
        grid[name] = values
    for combination in itertools.product(*grid.values()):
        yield chapter, scale, dict(zip(grid, combination))


def sweep_specs():
    if "sweep" in config:
        specs = yaml.safe_load(Path(config["sweep"]).read_text(encoding="utf-8"))
        return specs if isinstance(specs, list) else [specs]
    if "chapter" in config:
        grid = {name: value for name, value in config.items() if name not in ("chapter", "scale")}
        return [{"chapter": config["chapter"], "scale": SCALE, "grid": grid}]
    return []


def pages_content(evidence):
    """Content of all that the pages are made of; run folders are named by theirs."""
    names = ["_config.yml", "_toc.yml", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "requirements.lock"]
    files = [ROOT / name for name in names]
    files += [path for folder in ("book", "lib") for path in (ROOT / folder).rglob("*") if path.suffix != ".pyc"]
    whole = hashlib.sha256("\n".join(evidence).encode())
    for name in ("BOOK_REPOSITORY_URL", "GITHUB_REPOSITORY"):
        whole.update(f"{name}={os.environ.get(name, '')}".encode())
    for path in sorted(path for path in files if path.is_file()):
        whole.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return whole.hexdigest()[:16]


try:
    SWEEP = [(request(*point), *point) for spec in sweep_specs() for point in points(spec)]
except (ValueError, KeyError, OSError, yaml.YAMLError) as error:
    sys.exit(f"sweep: {error}")
SWEEP_TABLE = f"runs/sweeps/{hashlib.sha256(repr(SWEEP).encode()).hexdigest()[:12]}.csv"
CHAPTERS = [chapter_request(chapter) for chapter in chapters(ROOT)]
STAMP = f"_build/html/.content-{pages_content(CHAPTERS)}"


localrules: pages, execute_all, sweep


rule pages:
    input:
        CHAPTERS,
    output:
        # Not index.html: Snakemake deletes what a rule makes before it runs it, and a build that fails must leave the
        # pages that are there. The stamp lies among them and goes with them, also when others are built by hand.
        touch(STAMP),
    params:
        scale=SCALE,
    shell:
        # Stamps of other contents go first, or going back to one of them would find nothing to do.
        "rm -f _build/html/.content-* && {PYTHON} book/build.py --scale {params.scale}"


rule execute_all:
    input:
        CHAPTERS,


rule execute:
    output:
        # What is there is whole, whoever made it since this batch was planned: `update` keeps Snakemake from deleting
        # it before the job.
        update("runs/{scale}/{chapter}/{run}/evidence.json"),
    params:
        request=lambda wildcards, output: REQUESTS[str(output)],
    threads: 1
    resources:
        mem_mb=lambda wildcards: MEMORY_MB.get(wildcards.scale, 2500),
        runtime=lambda wildcards: MINUTES.get(wildcards.scale, 60),
    shell:
        "{PYTHON} -m lib.run {params.request} --threads {threads}"


rule sweep:
    input:
        [evidence for evidence, *_ in SWEEP],
    output:
        SWEEP_TABLE,
    run:
        with open(output[0], "w", newline="", encoding="utf-8") as stream:
            table = csv.writer(stream)
            table.writerow(["chapter", "scale", "run", "parameters", "claim", "verdict", "mean", "low", "high"])
            for path, chapter, scale, overrides in SWEEP:
                for claim in json.loads(Path(path).read_text(encoding="utf-8"))["claims"]:
                    effect = claim["interval"] or {}
                    table.writerow(
                        [chapter, scale, Path(path).parent.name, json.dumps(overrides), claim["id"], claim["verdict"]]
                        + [effect.get(name) for name in ("mean", "low", "high")]
                    )
        print(f"{len(SWEEP)} runs · {output[0]}")


def name_failures():
    failed = []
    for evidence in REQUESTS:
        said = ROOT / Path(evidence).with_name("failed.txt")
        if evidence in REFUSED:
            failed.append(REFUSED[evidence])
        elif said.is_file() and said.stat().st_mtime >= STARTED:
            failed.append(said.read_text(encoding="utf-8").strip())
    lines = failed or ["no chapter: the message of the step that failed stands above"]
    print("\nfailed:", *lines, sep="\n  ", file=sys.stderr)


onerror:
    atexit.register(name_failures)  # after all that Snakemake has to say
