# Sourced with the name of a strategy: exports what `accelerate launch --config_file launch/NAME.yaml` tells every process,
# for processes that srun or torchrun start. Accelerate itself is asked, so each strategy is written down once.
if [[ ! -f launch/${1-}.yaml ]]; then
    echo "no file launch/${1-}.yaml: name a strategy as first word (single, ddp, zero1, zero2, zero3, zero2_offload," \
        "zero3_offload, fsdp2) and start in the root of the repository" >&2
    return 2
fi
_told=$("${PYTHON:-python}" -m accelerate.commands.launch \
    --config_file "launch/$1.yaml" --num_processes 1 --main_process_port 0 --no_python env) || return
while IFS= read -r _line; do
    case $_line in ACCELERATE_*=* | FSDP_*=*) export "${_line?}" ;; esac
done <<<"$_told"
unset _told _line
