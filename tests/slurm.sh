#!/usr/bin/env bash
# One Slurm node on this machine, for tests/test_clusters.py: `tests/slurm.sh start FOLDER`, `tests/slurm.sh stop FOLDER`.
# Needs root, and Debian's packages slurm-wlm and munge, which it installs where they are missing.
set -euo pipefail
folder=$2
if [ "$1" = stop ]; then
    for name in slurmd slurmctld munged; do [ -f "$folder/$name.pid" ] && kill "$(cat "$folder/$name.pid")" 2>/dev/null || true; done
    exit 0
fi
command -v slurmctld >/dev/null || { timeout 60 apt-get update -qq && DEBIAN_FRONTEND=noninteractive timeout 200 apt-get install -y -qq slurm-wlm munge; } >/dev/null
mkdir -p "$folder"/{state,spool,log}
host=$(hostname -s)
mkdir -p /run/munge /etc/munge /var/log/munge /var/lib/munge
[ -s /etc/munge/munge.key ] || { dd if=/dev/urandom of=/etc/munge/munge.key bs=1 count=1024 2>/dev/null; }
chmod 755 /run/munge; chmod 700 /etc/munge; chmod 400 /etc/munge/munge.key
chown -R munge: /run/munge /etc/munge /var/log/munge /var/lib/munge
if ! munge -n >/dev/null 2>&1; then
    su -s /bin/sh munge -c '/usr/sbin/munged --force'
    cp /run/munge/munged.pid "$folder/munged.pid"
fi
cat > "$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmctldPort=16817
SlurmdPort=16818
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
ReturnToService=2
JobRequeue=1
KillWait=30
MinJobAge=300
SchedulerParameters=batch_sched_delay=0,sched_interval=2,defer
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF="$folder/slurm.conf"
/usr/sbin/slurmctld -f "$SLURM_CONF"
/usr/sbin/slurmd -f "$SLURM_CONF" -N "$host"
for _ in $(seq 30); do sinfo -h -o %t 2>/dev/null | grep -q idle && exit 0; sleep 1; done
tail -5 "$folder"/log/*.log >&2
exit 1
