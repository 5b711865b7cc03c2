#!/usr/bin/env bash
# One just-in-time GitHub Actions runner, for one job, on a machine that keeps nothing of it.
#
# Cleans the work folder, checks this machine, registers a runner that takes a single job, runs it, cleans again.
# systemd starts it again for the next job. Its settings are described in runner.env.example.
#
# Exit codes: 0 a job was done; 1 an error that may pass; 78 an error that a person must fix.
set -euo pipefail
shopt -s inherit_errexit
umask 077

readonly MARK=".awq-bot-runner" # in a work folder that this script may empty
readonly FIX=78                 # EX_CONFIG; the unit does not restart after it

say() { printf '%s\n' "$*" >&2; }

fail() { # CODE MESSAGE
    say "jit-runner: $2"
    exit "$1"
}

check_settings() {
    local name
    for name in RUNNER_SCOPE RUNNER_LABELS RUNNER_WORK RUNNER_EXEC; do
        [[ -n "${!name:-}" ]] || fail "$FIX" "$name is not set: see runner.env.example"
    done
    [[ $RUNNER_SCOPE =~ ^(repos/[A-Za-z0-9._-]+|orgs)/[A-Za-z0-9._-]+$ ]] ||
        fail "$FIX" "RUNNER_SCOPE is neither repos/OWNER/NAME nor orgs/NAME: $RUNNER_SCOPE"
    [[ $RUNNER_LABELS =~ ^[A-Za-z0-9._-]+(,[A-Za-z0-9._-]+)*$ ]] ||
        fail "$FIX" "RUNNER_LABELS are no names with commas between them: $RUNNER_LABELS"
    [[ ${RUNNER_GROUP_ID:-1} =~ ^[0-9]+$ ]] || fail "$FIX" "RUNNER_GROUP_ID is no number: $RUNNER_GROUP_ID"
    [[ $RUNNER_WORK =~ ^/[^/]+/. && $RUNNER_WORK != *..* ]] ||
        fail "$FIX" "RUNNER_WORK must be a folder below another one, by its whole path: $RUNNER_WORK"
    [[ -x $RUNNER_EXEC ]] || fail "$FIX" "RUNNER_EXEC cannot be run: $RUNNER_EXEC"
}

# --- disk

own_work() { # never deletes anything in a folder that was not empty at first
    mkdir -p "$RUNNER_WORK" || fail "$FIX" "RUNNER_WORK cannot be made: $RUNNER_WORK"
    if [[ ! -e $RUNNER_WORK/$MARK ]]; then
        [[ -z $(find "$RUNNER_WORK" -mindepth 1 -maxdepth 1 -print -quit) ]] ||
            fail "$FIX" "RUNNER_WORK is not empty, and was not made by this script: $RUNNER_WORK"
        : >"$RUNNER_WORK/$MARK"
    fi
}

clean() {
    # A job may leave folders that even their owner cannot read. The rm below reports what cannot be deleted.
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
    [[ -f $file ]] || fail "$FIX" "there is no token: set RUNNER_TOKEN_FILE, or the credential github-token"
    case $(stat --format %a "$file") in
        400 | 600) printf '%s' "$file" ;;
        *) fail "$FIX" "others may read $file: chmod 600 it, and make a new token" ;;
    esac
}

register() { # prints the configuration of a runner for one job
    local api=${GITHUB_API_URL:-https://api.github.com} file token body answer status config
    file=$(token_file)
    token=$(tr -d '[:space:]' <"$file")
    [[ $token =~ ^[A-Za-z0-9_.-]+$ ]] || fail "$FIX" "what is in $file is no token"
    body=$(printf '{"name":"awq-%.30s-%(%s)T-%d","runner_group_id":%d,"labels":["%s"],"work_folder":"_work"}' \
        "${HOSTNAME//[^A-Za-z0-9-]/-}" -1 "$RANDOM" "${RUNNER_GROUP_ID:-1}" "${RUNNER_LABELS//,/\",\"}")
    # The token goes through a pipe: other users of this machine can read arguments.
    answer=$(printf 'header = "Authorization: Bearer %s"\n' "$token" |
        curl --config - --silent --show-error --max-time 60 --write-out '\n%{http_code}' \
            --header 'Accept: application/vnd.github+json' --header 'X-GitHub-Api-Version: 2022-11-28' \
            --data "$body" "$api/$RUNNER_SCOPE/actions/runners/generate-jitconfig") ||
        fail 1 "GitHub cannot be reached at $api"
    status=${answer##*$'\n'}
    config=$(sed -n 's/.*"encoded_jit_config": *"\([A-Za-z0-9+/=_-]*\)".*/\1/p' <<<"$answer")
    case $status in
        201) [[ -n $config ]] || fail 1 "GitHub's answer holds no runner configuration" ;;
        401) fail "$FIX" "GitHub refuses the token (401): it has expired, or was revoked" ;;
        403 | 404 | 422)
            fail "$FIX" "the token may not register a runner at $RUNNER_SCOPE, or its group or labels are wrong ($status)"
            ;;
        *) fail 1 "GitHub answers $status" ;;
    esac
    printf '%s' "$config"
}

# --- one job

runner=""

stop() { # ends the runner with its job, and waits for it
    trap '' TERM INT
    # It may have ended meanwhile; however it ends, the exit code is that of a stop.
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
