#!/usr/bin/env bash
# Runs a command in the runner's image, with the GPUs and the work folder of this machine: RUNNER_EXEC for Docker.
set -euo pipefail

readonly NAME="awq-bot-runner"

# A container that a power cut left behind; usually there is none. If Docker itself fails, so does the next line.
docker rm --force "$NAME" >/dev/null 2>&1 || true

# Only the name: the value must not appear in the list of processes.
exec docker run --rm --init --name "$NAME" \
    --gpus all --shm-size 2g --pids-limit 8192 \
    --cap-drop ALL --security-opt no-new-privileges \
    --mount "type=bind,src=$RUNNER_WORK/job,dst=/home/runner/_work" \
    --mount "type=bind,src=$RUNNER_WORK/tmp,dst=/tmp" \
    --env ACTIONS_RUNNER_INPUT_JITCONFIG \
    "$RUNNER_IMAGE" "$@"
