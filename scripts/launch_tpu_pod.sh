#!/usr/bin/env bash
# Trains one run on a TPU pod slice: the same command on every host, which JAX makes one program (TPU_WORKER_HOSTNAMES).
#
#   TPU=my-slice ZONE=us-east5-a scripts/launch_tpu_pod.sh create            # asks for the slice (queued resource), waits
#   TPU=my-slice ZONE=us-east5-a scripts/launch_tpu_pod.sh setup             # checkout and environment on every host
#   TPU=my-slice ZONE=us-east5-a scripts/launch_tpu_pod.sh train configs/transformer_lm.py /mnt/shared/a [--config.FIELD=VALUE ...]
#   TPU=my-slice ZONE=us-east5-a scripts/launch_tpu_pod.sh stop              # saves the state, then `train` ends
#   TPU=my-slice ZONE=us-east5-a scripts/launch_tpu_pod.sh delete
#
# Needs gcloud, logged in, with a project set. The workdir is a folder that all hosts share (a mounted file system); checkpoints may go
# elsewhere (--config.checkpoint.dir=gs://BUCKET/runs). `train` goes on from the last checkpoint, and lasts as long as its
# connection: start it where that holds. After a preemption (SPOT=1): delete, create, setup, train.
# Settings: TYPE (v5p-128), RUNTIME (v2-alpha-tpuv5), SPOT=1, REPOSITORY (this checkout's origin), BRANCH (this one's).
# DRY_RUN=1 prints the commands and runs none. NOT TRIED ON A TPU: only read over (shellcheck, DRY_RUN=1).

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { # GOT EXPECTED CHANGE
  echo "error: $1; $2; $3" >&2
  exit 2
}
run() {
  if [ -n "${DRY_RUN:-}" ]; then printf '%q ' "$@" && echo; else "$@"; fi
}
on_all_hosts() { # COMMAND
  run gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"
}

[ -n "${TPU:+${ZONE:-}}" ] || fail "no TPU or ZONE in the environment" "the slice's name and its zone" "TPU=... ZONE=..."
action=${1:-}
case "$action" in
  create)
    run gcloud compute tpus queued-resources create "$TPU" --node-id="$TPU" --zone="$ZONE" \
      --accelerator-type="${TYPE:-v5p-128}" --runtime-version="${RUNTIME:-v2-alpha-tpuv5}" ${SPOT:+--spot}
    # A request waits until there are chips: hours, at times.
    state=""
    while [ -z "${DRY_RUN:-}" ] && [ "$state" != ACTIVE ]; do
      case "$state" in FAILED | SUSPENDED) fail "the queued resource is $state" "ACTIVE" "delete, then create" ;; esac
      sleep 30
      state=$(gcloud compute tpus queued-resources describe "$TPU" --zone="$ZONE" --format='value(state.state)')
      echo "$TPU: $state" >&2
    done
    ;;
  setup)
    repository=${REPOSITORY:-$(git remote get-url origin 2> /dev/null || true)}
    [ -n "$repository" ] || fail "no remote origin here" "a repository that the hosts can clone" "REPOSITORY=..."
    branch=${BRANCH:-$(git branch --show-current)}
    # The TPU images (Ubuntu 22.04) come with Python 3.10, which is too old.
    on_all_hosts "set -e; sudo apt-get update -qq; sudo apt-get install -y -qq python3.11-venv; \
rm -rf ilya_jax; git clone --quiet --depth 1 --branch $(printf '%q %q' "$branch" "$repository") ilya_jax; \
cd ilya_jax; export PYTHON=python3.11; extras=tpu; source scripts/environment"
    ;;
  train)
    [ $# -ge 3 ] || fail "train with $(($# - 1)) arguments" "CONFIG WORKDIR [--config.FIELD=VALUE ...]" "$0 train"
    config=$2 workdir=$3
    shift 3
    on_all_hosts "cd ilya_jax && source .venv/bin/activate && exec ilya-jax train $(printf '%q ' --config "$config" --workdir "$workdir" "$@")"
    ;;
  stop)
    on_all_hosts "pkill -INT -f '[i]lya-jax train'" # the brackets: not the shell that this line runs in
    ;;
  delete)
    run gcloud compute tpus queued-resources delete "$TPU" --zone="$ZONE" --force --quiet
    ;;
  *) fail "action '${action}'" "create, setup, train, stop or delete" "$0 ACTION" ;;
esac
