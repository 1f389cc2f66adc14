#!/usr/bin/env bash
# A one-node Slurm on this machine, for tests. As root, on Debian:
#   tests/slurm.sh install       slurm-wlm and munge, from Debian's packages
#   tests/slurm.sh start FOLDER  starts it, with everything that it writes in FOLDER; then: export SLURM_CONF=FOLDER/slurm.conf
#                                (munge runs as a user of its own, who must be able to enter FOLDER: one under /root will not do)
#   tests/slurm.sh stop FOLDER
# PORT is the first of its two ports (16817): a second Slurm on this machine needs others.
# Two partitions share the node: jobs of `urgent` preempt those of `normal`, which are queued again.
set -euo pipefail

install() {
    command -v slurmctld slurmd munged sbatch > /dev/null && return
    [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null || { echo 'no Slurm here, and it can be installed by root on Debian only'; return 1; }
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends slurm-wlm munge; } > /dev/null 2>&1 ||
        { echo 'no Slurm here, and apt-get could not install it'; return 1; }
}

start() {
    local dir; mkdir -p "$1"; dir=$(cd "$1" && pwd)
    mkdir -p "$dir"/{state,spool,log,munge}
    [ -f "$dir/munge/key" ] || dd if=/dev/urandom of="$dir/munge/key" bs=1 count=1024 status=none
    chmod 700 "$dir/munge"; chmod 400 "$dir/munge/key"; chmod 755 "$dir"; chown -R munge "$dir/munge"
    local socket=$dir/munge/socket port=${PORT:-16817}
    local name; name=$(hostname -s)
    cat > "$dir/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$name(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/log/slurmctld
SlurmdLogFile=$dir/log/slurmd
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
ReturnToService=2
KillWait=2
MinJobAge=300
NodeName=$name NodeAddr=127.0.0.1 CPUs=$(env -u OMP_NUM_THREADS nproc) RealMemory=1000 State=UNKNOWN
PartitionName=normal Nodes=$name Default=YES PriorityTier=1 MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=$name PriorityTier=10 MaxTime=INFINITE State=UP
CONF
    chmod 755 "$dir/munge"
    su -s /bin/sh munge -c "cd '$dir'" 2> /dev/null || { echo "the user munge cannot enter $dir: give a folder that others may enter, as in /tmp"; return 1; }
    su -s /bin/sh munge -c "munged --key-file=$dir/munge/key --socket=$socket --pid-file=$dir/munge/pid --log-file=$dir/munge/log --seed-file=$dir/munge/seed --force" ||
        { cat "$dir/munge/log"; return 1; }
    export SLURM_CONF=$dir/slurm.conf
    slurmctld && slurmd
    for _ in $(seq 60); do
        timeout 3 sinfo -h -o %t 2> /dev/null | grep -q idle && return
        sleep 0.5
    done
    echo "Slurm did not come up, see $dir/log"; sinfo; tail -5 "$dir"/log/*; return 1
}

stop() {
    local dir; dir=$(cd "$1" && pwd)
    export SLURM_CONF=$dir/slurm.conf
    scancel --user root 2> /dev/null || true
    local file pid
    for file in slurmd.pid slurmctld.pid munge/pid; do
        [ -f "$dir/$file" ] || continue
        pid=$(cat "$dir/$file"); kill "$pid" 2> /dev/null || continue
        for _ in $(seq 100); do kill -0 "$pid" 2> /dev/null || break; sleep 0.1; done  # each writes in the folder as it ends
    done
}

case "${1:-}" in
    install) install ;;
    start | stop) "$1" "${2:?a folder}" ;;
    *) sed -n '2,8p' "$0"; exit 2 ;;
esac
