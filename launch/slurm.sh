#!/bin/bash
# sbatch --nodes N launch/slurm.sh CONFIG [FIELD=VALUE ...] --out OUT
#SBATCH --job-name=mgjax
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@300
#SBATCH --open-mode=append
set -uo pipefail

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MGJAX_COORDINATOR="$head:29511"
export MGJAX_NUM_PROCESSES="$SLURM_NTASKS"

# The task's own number is known only inside srun.
srun --kill-on-bad-exit=1 bash -c 'MGJAX_PROCESS_ID=$SLURM_PROCID exec mgjax train "$@" --resume' mgjax "$@"
status=$?

# 0: done. 2: input that cannot be used. Everything else goes on from the newest checkpoint.
if [[ $status -ne 0 && $status -ne 2 ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
