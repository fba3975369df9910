#!/bin/bash
# launch/tpu.sh NAME ZONE CONFIG [FIELD=VALUE ...] --out OUT
# Runs the job on every worker of a TPU VM slice on which mgjax[tpu] is installed in ~/mgjax, until it is done.
set -uo pipefail

name=$1 zone=$2
shift 2
arguments=$(printf '%q ' "$@")
while true; do
    gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all \
        --command "cd ~/mgjax && MGJAX_COORDINATOR=auto mgjax train $arguments --resume"
    status=$?
    # 0: done. 2: input that cannot be used. 143: it was told to leave, and saved.
    [[ $status -eq 0 || $status -eq 2 || $status -eq 143 ]] && exit $status
    echo "launch: the job ended with status $status; starting it again in 30 s" >&2
    sleep 30
done
