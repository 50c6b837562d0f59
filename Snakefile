# The batch: which runs are missing, what runs where, and the pages made of them. Rules only: what a batch asks
# for, what each run needs and what is said of failures is in lib/runs/sweep.py.
#
#   snakemake                                   every chapter at the book's scale, then the pages (`make book`)
#   snakemake execute_all --config scale=smoke  every chapter at another scale, without pages
#   snakemake sweep --config chapter=template seeds='[0, 1, 2]' samples='[1000, 10000]'
#   snakemake sweep --config sweep=grid.yml     the same from a file: one or a list of {chapter, scale, grid}
#   snakemake sweep --config planned=meantime scale=long   what its plan announces: a run for each seed
#   snakemake -n                                what would run
#   snakemake --executor slurm --jobs 50        on a cluster (pip install snakemake-executor-plugin-slurm)
#
# Each run is a process of its own that needs this folder and the Python of this environment, and no state besides:
# on a cluster the folder must lie where all nodes see it. A killed batch is started again by the same command.

import atexit
import os
import shlex
import sys
import time

sys.path.insert(0, workflow.basedir)

from lib.runs import sweep as batch


workdir: workflow.basedir


STARTED = time.time()
SCALE = config.get("scale", "book")
PYTHON = shlex.quote(sys.executable)

try:
    asked_for = config | batch.as_written(workflow.config_settings.config_args or ())
    SWEEP = batch.sweep(asked_for, fetch=not workflow.dryrun)
    if not SWEEP and "sweep" in sys.argv:
        raise ValueError("which sweep? --config chapter=… or sweep=FILE or planned=…")
    CHAPTERS = batch.every_chapter(SCALE, fetch=not workflow.dryrun)
except ValueError as error:
    sys.exit(f"snakemake: {error}")
JOBS = {job.evidence: job for job in [*CHAPTERS, *SWEEP]}
EVIDENCE = "runs/{scale}/{chapter}/{run}/evidence.json"
SIMULATION = batch.simulation_folder()


ASKED = {}  # the runs that are part of this batch


def asked(wildcards):
    """The run that makes this evidence."""
    evidence = EVIDENCE.format(**wildcards)
    return ASKED.setdefault(evidence, JOBS[evidence])


def needs(what):
    """A resource of a run."""
    return lambda wildcards: getattr(asked(wildcards).resources, what)


localrules:
    pages,
    execute_all,
    sweep,


rule pages:
    input:
        [job.evidence for job in CHAPTERS],
        SIMULATION,
    output:
        # Not index.html: Snakemake deletes what a rule makes before it runs it, and a build that fails must leave the
        # pages that are there. The stamp lies among them and goes with them, also when others are built by hand.
        touch(f"_build/html/.content-{batch.pages_content(CHAPTERS, os.environ)}"),
    log:
        "_build/logs/pages.log",
    params:
        python=PYTHON,
        scale=SCALE,
    shell:
        # Stamps of other contents go first, or going back to one of them would find nothing to do.
        "rm -f _build/html/.content-* && {params.python} book/build.py --scale {params.scale} 2>&1 | tee {log}"


rule simulate_verdicts:
    input:
        batch.SIMULATED_WITH,
    output:
        directory(SIMULATION),
    log:
        "_build/logs/simulate_verdicts.log",
    params:
        python=PYTHON,
    shell:
        "{params.python} {input[0]} {output} 2>&1 | tee {log}"


rule execute_all:
    input:
        [job.evidence for job in CHAPTERS],


rule execute:
    output:
        # What is there is whole, whoever made it since this batch was planned: `update` keeps Snakemake from deleting
        # it before the job.
        update(EVIDENCE),
    log:
        "_build/logs/{scale}-{chapter}-{run}.log",
    params:
        python=PYTHON,
        request=lambda wildcards: asked(wildcards).arguments,
    threads: needs("threads")
    resources:
        mem_mb=needs("memory_mb"),
        runtime=needs("minutes"),
        gpu=needs("gpus"),
    shell:
        "{params.python} -m lib.run {params.request} 2>&1 | tee {log}"


rule sweep:
    input:
        [job.evidence for job in SWEEP],
    output:
        batch.table_name(SWEEP),
    log:
        "_build/logs/sweep.log",
    run:
        batch.write_table(SWEEP, output[0])
        print(f"{len(SWEEP)} runs · {output[0]}")


def name_failures():
    lines = batch.failures(ASKED.values(), STARTED) or ["see the message of the step above, and _build/logs"]
    print("\nfailed:", *lines, sep="\n  ", file=sys.stderr)


onerror:
    atexit.register(name_failures)  # after all that Snakemake has to say
