# shellcheck shell=bash disable=SC2034,SC2154  # gpu_check.sh sets and reads variables of this file
# How a phase of scripts/gpu_check.sh says things, runs commands for a limited time, and ends. That script sources this.
readonly MOST_LINES=40
failed=0  # 1: something failed
passed=0  # what passed or was measured on a GPU; a build does not count
stopped=0 # 1: a signal ended the phase

# ---- Saying --------------------------------------------------------------------------------------------------------
say() { echo "$*" | tee -a "$scratch/said" >>"$summary"; }
fail() {
  say "FAIL  $*"
  failed=1
}
pass() {
  say "ok    $*"
  passed=$((passed + 1))
}

# ---- Ending --------------------------------------------------------------------------------------------------------
signal_jobs() { # signal, job...: to each job and to its group; fails where none of them is there any more
  local signal=$1 job found=1
  shift
  for job; do
    kill "-$signal" -- "-$job" 2>/dev/null && found=0
    kill "-$signal" -- "$job" 2>/dev/null && found=0
  done
  return "$found"
}
stop_jobs() { # what still runs: asked to end, and killed after a second
  local jobs
  mapfile -t jobs < <(jobs -pr)
  signal_jobs TERM "${jobs[@]}" || return
  for _ in {1..10}; do
    sleep 0.1
    signal_jobs 0 "${jobs[@]}" || return
  done
  signal_jobs KILL "${jobs[@]}"
}
# shellcheck disable=SC2329  # called by the trap
finish() { # the summary of this phase, in at most MOST_LINES lines: the failures, then the rest from the top
  local lines status=0 ending="all that ran passed"
  trap '' TERM INT HUP
  stop_jobs 2>/dev/null
  if ((stopped)); then
    status=130 ending="stopped from outside"
  elif ((failed)); then
    status=1 ending="something failed"
  elif ((dry)); then
    ending="dry run, nothing failed"
  elif ((passed == 0)); then
    status=2 ending="nothing could run"
  fi
  say "$phase: $ending, $SECONDS s"
  lines=$(wc -l <"$scratch/said")
  if ((lines <= MOST_LINES)); then
    cat "$scratch/said"
  else
    head -n 1 "$scratch/said"
    sed '1d;$d' "$scratch/said" >"$scratch/inner"
    { grep '^FAIL' "$scratch/inner"; grep -v '^FAIL' "$scratch/inner"; } | head -n $((MOST_LINES - 3))
    echo "... $((lines - MOST_LINES + 1)) more lines in summary.txt"
    tail -n 1 "$scratch/said"
  fi
  rm -rf "$scratch"
  exit "$status"
}
trap finish EXIT
trap 'stopped=1; exit' TERM INT HUP

# ---- Running -------------------------------------------------------------------------------------------------------
left() { echo $((PHASE_S - SECONDS > 0 ? PHASE_S - SECONDS : 0)); }
least() { echo $(($1 < $2 ? $1 : $2)); }
# bash handles a signal only after the command in the foreground has ended, but it does not wait for one in the
# background: so commands that may take long run there, and `wait` takes their status.
limited() { # file for the output, most seconds, command...; status 124 or 137: not in time
  local file=$1
  shift
  timeout --kill-after=3 "$@" >"$file" 2>&1 </dev/null &
  wait $!
}
ask_gpu() { # fields of nvidia-smi: of the first GPU, into $answer
  answer=""
  limited "$scratch/answer" 10 nvidia-smi --query-gpu="$1" --format=csv,noheader || return
  answer=$(head -n 1 "$scratch/answer")
}
run() { # name, most seconds, command...: output to the log and to $scratch/run; 124: not in time
  local name=$1 limit rc
  limit=$(least "$2" "$(left)")
  shift 2
  ((limit > 0)) || return 124
  limited "$scratch/run" "$limit" "$@"
  rc=$?
  { echo "==== $name (status $rc): $*"; cat "$scratch/run"; } >>"$log"
  ((rc == 137)) && rc=124
  return "$rc"
}
why() { # of a status that run() returned: what the summary says
  case $1 in
    124) echo "not finished in time" ;;
    134 | 136 | 139) echo "crashed, signal $(($1 - 128))" ;;
    *) echo "status $1: $(grep -v '^ *$' "$scratch/run" | tail -n 1 | cut -c1-110)" ;;
  esac
}
step() { # name, most seconds, command...
  local name=$1 rc
  run "$@"
  rc=$?
  if ((rc == 0)); then say "ok    $name: $(tail -n 1 "$scratch/run" | cut -c1-220)"; else fail "$name: $(why "$rc")"; fi
  return "$rc"
}
