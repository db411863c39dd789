# shellcheck shell=bash
# Which machine runs the jobs, as in ESPnet's recipes: set cmd_backend.
#
#   local    this machine, output in log files (run.pl)
#   stdout   this machine, output on the screen as well (stdout.pl)
#   sge      qsub (queue.pl), options in conf/queue.conf
#   slurm    sbatch (slurm.pl), options in conf/slurm.conf
#   ssh      machines named in .queue/machines (ssh.pl)
#
# local and stdout come with this recipe; queue.pl, slurm.pl and ssh.pl are taken from the
# ESPnet tree around the recipe, or from PATH.

cmd_backend=${cmd_backend:-local}

case "${cmd_backend}" in
    local)
        export train_cmd="run.pl"
        export cuda_cmd="run.pl"
        export decode_cmd="run.pl"
        ;;
    stdout)
        export train_cmd="stdout.pl"
        export cuda_cmd="stdout.pl"
        export decode_cmd="stdout.pl"
        ;;
    sge)
        export train_cmd="queue.pl"
        export cuda_cmd="queue.pl"
        export decode_cmd="queue.pl"
        ;;
    slurm)
        export train_cmd="slurm.pl"
        export cuda_cmd="slurm.pl"
        export decode_cmd="slurm.pl"
        ;;
    ssh)
        export train_cmd="ssh.pl"
        export cuda_cmd="ssh.pl"
        export decode_cmd="ssh.pl"
        ;;
    *)
        echo "Error: cmd_backend=${cmd_backend}: expected local, stdout, sge, slurm or ssh" >&2
        return 1
        ;;
esac
