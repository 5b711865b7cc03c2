#!/usr/bin/env bash
# Runs a command in the runner's image, with the GPUs and the work folder of this machine: RUNNER_EXEC for Docker.
set -euo pipefail

readonly NAME="awq-bot-runner"

# What a power cut left behind; most times there is nothing. If Docker itself fails, the next line says so.
docker rm --force "$NAME" >/dev/null 2>&1 || true

# The name alone: its value must be in nobody's list of processes.
exec docker run --rm --init --name "$NAME" \
    --gpus all --shm-size 2g --pids-limit 8192 \
    --cap-drop ALL --security-opt no-new-privileges \
    --mount "type=bind,src=$RUNNER_WORK/job,dst=/home/runner/_work" \
    --mount "type=bind,src=$RUNNER_WORK/tmp,dst=/tmp" \
    --env ACTIONS_RUNNER_INPUT_JITCONFIG \
    "$RUNNER_IMAGE" "$@"
