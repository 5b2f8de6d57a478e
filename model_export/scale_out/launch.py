"""A training stage in this process, or on several: torchrun starts this module in each of them.

The run itself stays one process: it writes the job to a file, waits, and passes on the progress of the first process.
training/processes.py says how the processes divide the work.
"""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
from transformers import set_seed

from model_export.child_process import start_child
from model_export.data.mine import read_mined
from model_export.data.prepare import Data, load_data
from model_export.data.prompting import PromptForm, Prompting
from model_export.data.soft_labels import read_soft_labels
from model_export.models.model_io import free_gpu_memory
from model_export.progress import OnProgress
from model_export.scale_out.rollout_server import rollout_server
from model_export.student.distil import train_student
from model_export.teacher.sft import train_cot, train_label_only
from model_export.training.stage_job import OnStep, StageJob
from model_export.training.supervised import saved_state
from service.errors import NotegradeError

_JOB, _LOG = "job.json", "processes.log"
# Prefixes of our lines on stdout, where libraries write too.
_STEP, _ERROR = "notegrade-step", "notegrade-error"
_LOG_TAIL_CHARS = 2000
_STOP_TIMEOUT_S = 60


class LaunchError(NotegradeError):
    """Raised for a stage in which a process failed."""


def run_job(job: StageJob, prompting: Prompting, on_progress: OnProgress) -> None:
    """Train in this process, or on as many as the recipe says."""
    on_step = partial(on_progress, f"Train {job.folder.name.rpartition('-')[0]}")
    with rollout_server(job, prompting.max_teacher_tokens + job.recipe.rl.max_tokens) as served:
        if job.recipe.launch.processes == 1:
            train_stage(served, load_data(job.data), prompting, on_step)
        else:
            launch(served, on_step)


def train_stage(job: StageJob, data: Data, prompting: Prompting, on_step: OnStep) -> None:
    """Train the stage in this process."""
    set_seed(job.recipe.seed)
    pairs = [pair for pair in data.train if job.ids is None or pair.id in job.ids]
    if job.stage == "label_only_sft":
        train_label_only(pairs, prompting, job, on_step)
    elif job.stage in ("cot_sft", "self_sft"):
        evidence = read_soft_labels(job.evidence) if job.evidence else {}
        train_cot(pairs, evidence, prompting, job, on_step)
    elif job.stage == "distil":
        labels = read_soft_labels(job.soft_labels) if job.soft_labels else {}
        mined = read_mined(job.unlabelled) if job.unlabelled else []
        train_student([*pairs, *mined], labels, prompting, job, on_step)
    else:
        from model_export.teacher.rl import train_rl  # TRL imports vLLM, which takes ten seconds

        train_rl(pairs, data.dev, prompting, job, on_step)


def launch(job: StageJob, on_step: OnStep) -> None:
    """Train on the recipe's number of processes, and return when the weights are in the job's folder.

    Raises LaunchError with the message of the first process, or else with the end of the processes' log.
    """
    file, log = job.folder / _JOB, job.folder / _LOG
    file.write_text(job.model_dump_json(), encoding="utf-8")
    # Remove half-written states here: the processes would all try at the same time.
    saved_state(job.folder / "state")
    # The first process needs the GPU memory that this process sampled traces with.
    free_gpu_memory()
    error = ""
    # TERM: torchrun puts its processes in sessions of their own and ends them itself.
    command = _command(job.recipe.launch.processes, file)
    with start_child(command, log, pipe_stdout=True, signal_at_end="TERM") as torchrun:
        try:
            for line in torchrun.stdout or ():
                word, _, rest = line.decode(errors="replace").rstrip("\n").partition(" ")
                if word == _STEP:
                    done, total = map(int, rest.split())
                    on_step(done, total)
                elif word == _ERROR:
                    error = rest
            code = torchrun.wait()
        finally:
            _stop(torchrun)
    if code:
        tail = log.read_text(encoding="utf-8", errors="replace")[-_LOG_TAIL_CHARS:]
        raise LaunchError(error or f"stage {job.stage} ended with exit code {code}; {log} ends:\n{tail}")
    file.unlink()
    log.unlink()


def _command(processes: int, job: Path) -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*torchrun, f"--nproc-per-node={processes}", "-m", "model_export.scale_out.launch", str(job)]


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()  # torchrun ends its processes before itself
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()


def main() -> None:
    """Run one process of a stage. torchrun starts it with the job's file."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    job = StageJob.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        data = load_data(job.data)
        prompting = Prompting.load(
            PromptForm.of(job.recipe.model, data.criteria, data.teacher_criteria), job.start
        )
        train_stage(job, data, prompting, lambda *step: print(_STEP, *step, flush=True))
    except NotegradeError as error:
        if os.environ["RANK"] == "0":
            print(_ERROR, *str(error).split(), flush=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
