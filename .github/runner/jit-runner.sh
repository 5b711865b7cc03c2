#!/usr/bin/env bash
# One ephemeral GitHub Actions runner: it takes one job, and nothing of the job stays on the machine.
#
# Cleans the work folder, tests this machine, registers a just-in-time runner, runs it, cleans up. systemd starts it
# again for the next job. runner.env.example describes its settings.
#
# Exit codes: 0 a job was done; 1 a failure that may be temporary; 78 the settings or the token need fixing.
set -euo pipefail
shopt -s inherit_errexit
umask 077

readonly MARK=".awq-bot-runner" # marks a work folder that may be emptied
readonly EX_CONFIG=78           # as in sysexits.h; the unit does not restart after it

say() { printf '%s\n' "$*" >&2; }

fail() { # CODE MESSAGE
    say "jit-runner: $2"
    exit "$1"
}

check_settings() {
    local name
    for name in RUNNER_SCOPE RUNNER_LABELS RUNNER_WORK RUNNER_EXEC; do
        [[ -n "${!name:-}" ]] || fail "$EX_CONFIG" "$name is not set: see runner.env.example"
    done
    [[ $RUNNER_SCOPE =~ ^(repos/[A-Za-z0-9._-]+|orgs)/[A-Za-z0-9._-]+$ ]] ||
        fail "$EX_CONFIG" "RUNNER_SCOPE is neither repos/OWNER/NAME nor orgs/NAME: $RUNNER_SCOPE"
    [[ $RUNNER_LABELS =~ ^[A-Za-z0-9._-]+(,[A-Za-z0-9._-]+)*$ ]] ||
        fail "$EX_CONFIG" "RUNNER_LABELS is not a comma-separated list of names: $RUNNER_LABELS"
    [[ ${RUNNER_GROUP_ID:-1} =~ ^[0-9]+$ ]] || fail "$EX_CONFIG" "RUNNER_GROUP_ID is not a number: $RUNNER_GROUP_ID"
    [[ $RUNNER_WORK =~ ^/[^/]+/. && $RUNNER_WORK != *..* ]] ||
        fail "$EX_CONFIG" "RUNNER_WORK must be an absolute path at least two folders deep: $RUNNER_WORK"
    [[ -x $RUNNER_EXEC ]] || fail "$EX_CONFIG" "RUNNER_EXEC is not executable: $RUNNER_EXEC"
}

# --- disk

own_work() { # a folder that had content before this script marked it is never emptied
    mkdir -p "$RUNNER_WORK" || fail "$EX_CONFIG" "RUNNER_WORK cannot be created: $RUNNER_WORK"
    if [[ ! -e $RUNNER_WORK/$MARK ]]; then
        [[ -z $(find "$RUNNER_WORK" -mindepth 1 -maxdepth 1 -print -quit) ]] ||
            fail "$EX_CONFIG" "RUNNER_WORK is not empty, and was not created by this script: $RUNNER_WORK"
        : >"$RUNNER_WORK/$MARK"
    fi
}

clean() {
    # A job's files may be unreadable even to their owner. If chmod fails, rm names the files in the next line.
    find "$RUNNER_WORK" -mindepth 1 -type d ! -perm -u+rwx -exec chmod u+rwx {} \; 2>/dev/null || true
    find "$RUNNER_WORK" -mindepth 1 -maxdepth 1 ! -name "$MARK" -exec rm -rf -- {} +
    mkdir -p "$RUNNER_WORK/job" "$RUNNER_WORK/tmp"
}

# --- GitHub

token_file() { # a systemd credential, or a file that only its owner may read
    if [[ -n ${CREDENTIALS_DIRECTORY:-} && -f $CREDENTIALS_DIRECTORY/github-token ]]; then
        printf '%s' "$CREDENTIALS_DIRECTORY/github-token"
        return
    fi
    local file=${RUNNER_TOKEN_FILE:-}
    [[ -f $file ]] || fail "$EX_CONFIG" "there is no token: set RUNNER_TOKEN_FILE, or the credential github-token"
    case $(stat --format %a "$file") in
        400 | 600) printf '%s' "$file" ;;
        *) fail "$EX_CONFIG" "other users can read $file: chmod 600 it, and create a new token" ;;
    esac
}

register() { # prints the configuration of a just-in-time runner
    local api=${GITHUB_API_URL:-https://api.github.com} file token body answer status config
    file=$(token_file)
    token=$(tr -d '[:space:]' <"$file")
    [[ $token =~ ^[A-Za-z0-9_.-]+$ ]] || fail "$EX_CONFIG" "$file does not contain a token"
    body=$(printf '{"name":"awq-%.30s-%(%s)T-%d","runner_group_id":%d,"labels":["%s"],"work_folder":"_work"}' \
        "${HOSTNAME//[^A-Za-z0-9-]/-}" -1 "$RANDOM" "${RUNNER_GROUP_ID:-1}" "${RUNNER_LABELS//,/\",\"}")
    # The token goes through a pipe, because every user of this machine can read arguments.
    answer=$(printf 'header = "Authorization: Bearer %s"\n' "$token" |
        curl --config - --silent --show-error --max-time 60 --write-out '\n%{http_code}' \
            --header 'Accept: application/vnd.github+json' --header 'X-GitHub-Api-Version: 2022-11-28' \
            --data "$body" "$api/$RUNNER_SCOPE/actions/runners/generate-jitconfig") ||
        fail 1 "GitHub cannot be reached at $api"
    status=${answer##*$'\n'}
    config=$(sed -n 's/.*"encoded_jit_config": *"\([A-Za-z0-9+/=_-]*\)".*/\1/p' <<<"$answer")
    case $status in
        201) [[ -n $config ]] || fail 1 "GitHub's answer contains no runner configuration" ;;
        401) fail "$EX_CONFIG" "GitHub refuses the token (401): it has expired, or was revoked" ;;
        403 | 404 | 422)
            fail "$EX_CONFIG" "the token is not permitted to register a runner at $RUNNER_SCOPE, or its group or labels are wrong ($status)"
            ;;
        *) fail 1 "GitHub answers $status" ;;
    esac
    printf '%s' "$config"
}

# --- one job

runner=""

stop() { # asks the runner to stop, and waits until its job has ended
    trap '' TERM INT
    # It may have ended already. Its exit status does not matter: this script was asked to stop.
    [[ -z $runner ]] || kill -TERM "$runner" 2>/dev/null || true
    [[ -z $runner ]] || wait "$runner" || true
    exit 143
}

main() {
    check_settings
    own_work
    exec 9<"$RUNNER_WORK/$MARK"
    flock --nonblock 9 || fail 1 "another runner uses $RUNNER_WORK"
    trap clean EXIT
    trap stop TERM INT
    clean
    "$RUNNER_EXEC" awq-bot doctor --runner --work /home/runner/_work 9<&- || fail 1 "this machine is not fit for a job"
    local config
    config=$(register)
    say "jit-runner: waiting for a job"
    ACTIONS_RUNNER_INPUT_JITCONFIG=$config "$RUNNER_EXEC" /home/runner/run.sh 9<&- &
    runner=$!
    wait "$runner" || fail 1 "the runner ended with $?"
    say "jit-runner: one job is done"
}

main
