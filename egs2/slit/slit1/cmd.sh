# shellcheck shell=bash
# Which machine runs the jobs, as in ESPnet's recipes: set cmd_backend.
#
#   local    this machine, output in log files (run.pl)
#   stdout   this machine, output on the screen as well (stdout.pl)
#   sge      qsub (queue.pl), options in conf/queue.conf
#   slurm    sbatch (slurm.pl), options in conf/slurm.conf
#   pbs      qsub of PBS (pbs.pl), options in conf/pbs.conf
#   ssh      machines named in .queue/machines (Kaldi's ssh.pl; not for training: --host)
#
# local and stdout come with this recipe, the others are looked for in utils/ and on PATH:
# an ESPnet tree around the recipe has queue.pl, slurm.pl and pbs.pl, no ssh.pl.

cmd_backend=${cmd_backend:-local}

case "${cmd_backend}" in
    local) train_cmd=run.pl ;;
    sge) train_cmd=queue.pl ;;
    stdout | slurm | pbs | ssh) train_cmd=${cmd_backend}.pl ;;
    *)
        echo "Error: cmd_backend=${cmd_backend}: expected local, stdout, sge, slurm, pbs or ssh" >&2
        return 1
        ;;
esac
if ! command -v "${train_cmd}" >/dev/null; then
    echo "Error: cmd_backend=${cmd_backend} needs ${train_cmd}, which is neither in utils/ nor on" \
        "PATH. There are: $(compgen -c | grep -xE "(run|stdout|queue|slurm|pbs|ssh|retry)\.pl" | sort -u | xargs)" >&2
    return 1
fi
export train_cmd
export cuda_cmd=${train_cmd} decode_cmd=${train_cmd} # a cluster's GPU queue may be another
