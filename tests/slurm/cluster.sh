#!/usr/bin/env bash
# A real SLURM cluster on one host, for tests: munged, MariaDB, slurmdbd, slurmctld and a slurmd for each node, with fake
# GPUs. Needs no systemd and no cgroups; installs Debian packages when it is root and they are missing.
#
#   cluster.sh install | start | stop | status | env | logs | run COMMAND…
#   cluster.sh set max-array N          the longest job array
#   cluster.sh set user-signal on|off   whether preemption sends the job's own signal first (SLURM's default: off)
#
# KRILL_SLURM_DIR     everything lives there (configuration, state, logs/)     ${TMPDIR:-/tmp}/krill-slurm
# KRILL_SLURM_PORT    the first of the ports on 127.0.0.1                      27800
# KRILL_SLURM_NODES, _CPUS, _GPUS, _MEMORY (MB): nodes, and what each claims   2, 16, 2, 64000
# KRILL_SLURM_MAX_ARRAY, KRILL_SLURM_USER_SIGNAL (0, 1): as `set` has them     1001, 1
set -euo pipefail

dir=${KRILL_SLURM_DIR:-${TMPDIR:-/tmp}/krill-slurm}
port=${KRILL_SLURM_PORT:-27800}
nodes=${KRILL_SLURM_NODES:-2}
cpus=${KRILL_SLURM_CPUS:-16}
gpus=${KRILL_SLURM_GPUS:-2}
memory=${KRILL_SLURM_MEMORY:-64000}
max_array=${KRILL_SLURM_MAX_ARRAY:-1001}
case ${KRILL_SLURM_USER_SIGNAL:-1} in 0 | off) user_signal=off ;; *) user_signal=on ;; esac
me=$(id -un)
logs=$dir/logs
names=n1
[ "$nodes" = 1 ] || names="n[1-$nodes]"
export SLURM_CONF=$dir/slurm.conf PATH=$PATH:/usr/sbin:/sbin

say() { echo "cluster: $*" >&2; }
die() { say "$*"; exit 1; }

wait_for() { # SECONDS WHAT COMMAND…
  local seconds=$1 what=$2
  shift 2
  for _ in $(seq $((seconds * 5))); do
    "$@" >/dev/null 2>&1 && return
    sleep 0.2
  done
  tail -n 5 "$logs"/*.log >&2 || true
  die "waited ${seconds} s for $what; logs in $logs"
}

# The process of a pid file, if it is a daemon that this folder started: pids are used again.
daemon() {
  local pid
  pid=$(cat "$1" 2>/dev/null | tr -dc 0-9) && [ -n "$pid" ] && [ -r "/proc/$pid/environ" ] || return 1
  grep -qE '^(munged|slurmctld|slurmd|slurmdbd|mariadbd)$' "/proc/$pid/comm" || return 1
  tr '\0' '\n' <"/proc/$pid/environ" | grep -qxF "SLURM_CONF=$SLURM_CONF" || return 1
  echo "$pid"
}

runs() { daemon "$1" >/dev/null; }

install_packages() {
  local missing=() pair policy=/usr/sbin/policy-rc.d mine=
  for pair in munged:munge slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client slurmdbd:slurmdbd mariadbd:mariadb-server; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  [ "$(id -u)" = 0 ] || die "missing packages, to be installed as root: ${missing[*]}"
  say "apt-get install ${missing[*]}"
  mkdir -p "$logs"
  if [ ! -e $policy ]; then # packages must not start their daemons
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
    mine=1
  fi
  if ! { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"; } \
    >"$logs/apt.log" 2>&1; then
    [ -z "$mine" ] || rm -f $policy
    tail -n 20 "$logs/apt.log" >&2
    die "apt-get failed"
  fi
  [ -z "$mine" ] || rm -f $policy
}

write_configuration() {
  local signal_option=SlurmctldParameters=preempt_send_user_signal i
  # Later versions call it otherwise.
  grep -aqs PreemptParameters /usr/lib/*/slurm*/libslurmfull.so && signal_option=PreemptParameters=send_user_signal
  [ "$user_signal" = on ] || signal_option="#$signal_option"
  cat >"$dir/slurm.conf" <<EOF
ClusterName=krill
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$((port + 17))
SlurmUser=$me
SlurmdUser=$me
AuthType=auth/munge
CredType=cred/munge
# A job that is started again waits for the old credential to expire, 120 s by default.
AuthInfo=socket=$dir/munge/socket,cred_expire=5
StateSaveLocation=$dir/controller
SlurmdSpoolDir=$dir/spool-%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$logs/slurmctld.log
SlurmdLogFile=$logs/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1
KillWait=5
MinJobAge=300
InactiveLimit=0
SlurmctldTimeout=30
SlurmdTimeout=300
MaxArraySize=$max_array
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# Without it a preempted job never sees the signal that it asked for: only SIGTERM, and SIGKILL after KillWait.
$signal_option
JobRequeue=1
# Otherwise a job beyond the limits of its partition waits for ever.
EnforcePartLimits=ALL
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((port + 19))
# AuthInfo does not hold for connections to slurmdbd.
AccountingStoragePass=$dir/munge/socket
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=qos
EOF
  for i in $(seq "$nodes"); do
    echo "NodeName=n$i NodeAddr=127.0.0.1 NodeHostname=$(hostname -s) Port=$((port + 100 + i)) CPUs=$cpus" \
      "RealMemory=$memory Gres=gpu:fake:$gpus State=UNKNOWN" >>"$dir/slurm.conf"
    mkdir -p "$dir/spool-n$i"
  done
  cat >>"$dir/slurm.conf" <<EOF
# gpu: gives way at once. spot: has 20 s to save. urgent: takes the nodes of both. short: a minute at most.
PartitionName=gpu Nodes=$names Default=YES MaxTime=600 DefaultTime=10 State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=spot Nodes=$names MaxTime=600 DefaultTime=10 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=urgent Nodes=$names MaxTime=600 DefaultTime=10 State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=short Nodes=$names MaxTime=1 State=UP PriorityTier=1 PreemptMode=OFF
EOF
  # Fake GPUs are links to a character device: with plain files CUDA_VISIBLE_DEVICES is never set.
  mkdir -p "$dir/dev"
  for i in $(seq 0 $((gpus - 1))); do ln -sf /dev/null "$dir/dev/gpu$i"; done
  {
    echo AutoDetect=off
    echo "NodeName=$names Name=gpu Type=fake Flags=nvidia_gpu_env File=$dir/dev/gpu[0-$((gpus - 1))]"
  } >"$dir/gres.conf"
  # slurmd starts its cgroup plugin even where nothing uses it, and autodetection fails in containers.
  if [ "$(slurmd -V | grep -oE '[0-9]+' | head -n 1)" -ge 24 ]; then
    echo CgroupPlugin=disabled >"$dir/cgroup.conf"
  else
    echo CgroupPlugin=cgroup/v1 >"$dir/cgroup.conf"
  fi
}

start_munge() {
  runs "$dir/munge/munged.pid" && return
  [ -s "$dir/munge/key" ] || (umask 077 && head -c 1024 /dev/urandom >"$dir/munge/key")
  rm -f "$dir"/munge/socket*
  munged --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" --pid-file="$dir/munge/munged.pid" \
    --log-file="$logs/munged.log" --seed-file="$dir/munge/seed" --num-threads=2 2>>"$logs/munged.log"
  wait_for 10 munged munge -n -S "$dir/munge/socket"
}

start_accounting() {
  local socket=$dir/db/socket word
  if [ ! -d "$dir/db/data/mysql" ]; then
    mkdir -p "$dir/db"
    mariadb-install-db --no-defaults --user="$me" --datadir="$dir/db/data" --skip-test-db \
      --auth-root-authentication-method=normal >"$logs/mariadb-install.log" 2>&1 ||
      { tail -n 20 "$logs/mariadb-install.log" >&2; die "MariaDB could not make its tables"; }
  fi
  if ! runs "$dir/db/mariadbd.pid"; then
    setsid mariadbd --no-defaults --user="$me" --datadir="$dir/db/data" --socket="$socket" --port=$((port + 30)) \
      --bind-address=127.0.0.1 --pid-file="$dir/db/mariadbd.pid" --innodb-buffer-pool-size=32M \
      --innodb-flush-log-at-trx-commit=0 --log-error="$logs/mariadb.log" </dev/null >/dev/null 2>&1 &
    wait_for 20 mariadbd mariadb-admin --no-defaults -u root -S "$socket" ping
  fi
  [ -s "$dir/db/word" ] || (umask 077 && head -c 18 /dev/urandom | base64 | tr -dc A-Za-z0-9 >"$dir/db/word")
  word=$(cat "$dir/db/word")
  mariadb --no-defaults -u root -S "$socket" -e "create database if not exists slurm_acct_db;
    create or replace user slurm@'localhost' identified by '$word'; grant all on slurm_acct_db.* to slurm@'localhost';
    create or replace user slurm@'127.0.0.1' identified by '$word'; grant all on slurm_acct_db.* to slurm@'127.0.0.1';"
  (umask 077 && cat >"$dir/slurmdbd.conf") <<EOF
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((port + 19))
SlurmUser=$me
LogFile=$logs/slurmdbd.log
PidFile=$dir/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((port + 30))
StorageUser=slurm
StoragePass=$word
StorageLoc=slurm_acct_db
EOF
  runs "$dir/slurmdbd.pid" || slurmdbd >>"$logs/slurmdbd.log" 2>&1
  wait_for 30 slurmdbd sacctmgr -n list cluster
  if ! sacctmgr -n list account format=account | grep -qw lab; then
    {
      sacctmgr -i add cluster krill || true
      sacctmgr -i add qos high priority=100 || true
      sacctmgr -i add account lab || true
      sacctmgr -i add user "$me" account=lab qos=normal,high || true
      sacctmgr -i modify user "$me" set qos=normal,high || true
    } >>"$logs/sacctmgr.log" 2>&1
  fi
}

# Ranks of several nodes meet at a node's name. The line says whose it is: another cluster may need these names for longer.
hosts_line="127.0.0.1 $(seq -f 'n%g' -s ' ' "$nodes") # krill-slurm $dir"

named() { grep -qxF "$hosts_line" /etc/hosts; }

name_nodes() (
  flock 9 # clusters that start and stop side by side would lose lines
  named && return
  { echo "$hosts_line" >>/etc/hosts; } 2>/dev/null || getent hosts n1 >/dev/null ||
    say "n1 to n$nodes do not resolve: jobs on several nodes will fail"
) 9</etc/hosts

forget_nodes() (
  flock 9
  [ -w /etc/hosts ] && named || return 0
  rest=$(grep -vxF "$hosts_line" /etc/hosts) || true # no sed -i: in a container the file cannot be replaced
  printf '%s\n' "$rest" >/etc/hosts
) 9</etc/hosts

start_controller() {
  runs "$dir/slurmctld.pid" || slurmctld >>"$logs/slurmctld.log" 2>&1 || die "see $logs/slurmctld.log"
  wait_for 20 slurmctld scontrol ping
}

all_up() { [ "$(sinfo -h -N -o '%N %T' | sort -u | grep -cE ' (idle|mixed|allocated|completing)$')" -ge "$nodes" ]; }

# A daemon whose port another cluster holds would only be missed after a long wait.
check_ports() {
  local pair pairs=(slurmctld:17 slurmdbd:19 db/mariadbd:30) i
  for i in $(seq "$nodes"); do pairs+=("slurmd-n$i:$((100 + i))"); done
  for pair in "${pairs[@]}"; do
    ! runs "$dir/${pair%%:*}.pid" || continue
    ! (exec 3<>"/dev/tcp/127.0.0.1/$((port + ${pair##*:}))") 2>/dev/null ||
      die "port $((port + ${pair##*:})) is taken, by another cluster? choose others with KRILL_SLURM_PORT"
  done
}

start() {
  umask 022
  mkdir -p "$dir/munge" "$dir/controller" "$logs"
  chmod 755 "$dir"
  chmod 711 "$dir/munge"
  install_packages
  check_ports
  start_munge
  runs "$dir/slurmctld.pid" || write_configuration
  start_accounting
  start_controller
  local i
  for i in $(seq "$nodes"); do
    runs "$dir/slurmd-n$i.pid" || slurmd -N "n$i" >>"$logs/slurmd.log" 2>&1 || die "see $logs/slurmd.log"
  done
  name_nodes
  wait_for 30 "the nodes" all_up
  say "up: SLURM_CONF=$SLURM_CONF"
}

end_daemon() { # PIDFILE
  local pid
  pid=$(daemon "$1") || return 0
  kill "$pid" 2>/dev/null || true
  for _ in $(seq 75); do
    runs "$1" || break
    sleep 0.2
  done
  ! runs "$1" || kill -9 "$pid" || true
  rm -f "$1"
}

stop() {
  [ -d "$dir" ] || return 0
  local file
  if runs "$dir/slurmctld.pid"; then
    timeout 10 scancel -u "$me" --full 2>/dev/null || true
    for _ in $(seq 50); do
      [ -z "$(timeout 5 squeue -h 2>/dev/null)" ] && break
      sleep 0.2
    done
  fi
  for file in "$dir"/slurmd-n*.pid "$dir/slurmctld.pid" "$dir/slurmdbd.pid" "$dir/db/mariadbd.pid" "$dir/munge/munged.pid"; do
    end_daemon "$file"
  done
  forget_nodes
  say "stopped; logs are in $logs"
}

# Only that line changes: whoever sets an option need not know with which variables the cluster was started.
set_option() { # NAME VALUE
  runs "$dir/slurmctld.pid" || die "no cluster runs in $dir"
  case $1=$2 in
    max-array=[1-9]*) sed -i "s/^MaxArraySize=.*/MaxArraySize=$2/" "$dir/slurm.conf" ;;
    user-signal=on) sed -i 's/^#\([A-Za-z]*=.*send_user_signal\)$/\1/' "$dir/slurm.conf" ;;
    user-signal=off) sed -i 's/^[A-Za-z]*=.*send_user_signal$/#&/' "$dir/slurm.conf" ;;
    *) die "set max-array N, or set user-signal on|off" ;;
  esac
  if [ "$1" = user-signal ]; then
    scontrol reconfigure
    return
  fi
  # slurmctld keeps the size that it saw with its first job, though scontrol shows the new one.
  end_daemon "$dir/slurmctld.pid"
  start_controller
  local file pid
  for file in "$dir"/slurmd-n*.pid; do # they would only report after some seconds
    ! pid=$(daemon "$file") || kill -HUP "$pid"
  done
  wait_for 30 "the nodes" all_up
}

# From an empty state, and nothing stays, also when a daemon does not start or somebody interrupts.
run() {
  ! runs "$dir/slurmctld.pid" || die "a cluster runs in $dir; stop it, or choose another folder with KRILL_SLURM_DIR"
  stop 2>/dev/null
  # Job numbers begin at 1 again: an accounting that remembers them would tell of older jobs.
  rm -rf "$dir/controller" "$dir/db" "$dir/munge" "$dir"/spool-*
  trap stop EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  start
  local code=0
  "$@" || code=$?
  exit $code
}

status() {
  local file missing=0
  for file in munge/munged db/mariadbd slurmdbd slurmctld $(seq -f 'slurmd-n%g' "$nodes"); do
    runs "$dir/$file.pid" || { say "$file does not run"; missing=1; }
  done
  [ $missing = 0 ] || return 3
  sinfo
  squeue
}

case ${1:-} in
  install) install_packages ;;
  start) start ;;
  stop) stop ;;
  status) status ;;
  env) echo "export SLURM_CONF=$SLURM_CONF" ;;
  logs) tail -n "${2:-30}" "$logs"/*.log ;;
  set) set_option "${2:-}" "${3:-}" ;;
  run)
    shift
    run "$@"
    ;;
  *)
    sed -n '2,13s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
