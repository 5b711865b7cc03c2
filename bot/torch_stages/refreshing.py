"""Try a refresh's small files, where no evaluation follows."""

from __future__ import annotations

import shutil

from bot.calibration.trial import try_tokenizer
from bot.checkpoint.small_files import carry_small_files
from bot.checkpoint.writer import writing
from bot.jobdir import JobDir, describe_file
from bot.records import SmallFiles


def refresh_job(jobdir: JobDir) -> SmallFiles:
    """Try upstream's changed small files, and put them as they are published into quantized/."""
    job = jobdir.job
    try_tokenizer(jobdir.source, trust_remote_code=job.entry.trust_remote_code)
    shutil.rmtree(jobdir.quantized, ignore_errors=True)
    with writing(jobdir.quantized):
        jobdir.quantized.mkdir(parents=True)
    paths = carry_small_files(jobdir.source, jobdir.quantized, trust_remote_code=job.entry.trust_remote_code)
    files = SmallFiles(files=tuple(describe_file(jobdir.quantized, path) for path in paths))
    jobdir.store(files)
    return files
