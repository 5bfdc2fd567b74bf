"""A throw-away Slurm on this machine, for tests of what only a real one shows: arrays, requeues, lost nodes.

munged, slurmctld and one slurmd per node run as root, without systemd, on free ports of 127.0.0.1; with accounting
also mariadbd and slurmdbd. A node is only a name: any number of them share this machine, and claim what processors,
memory and GPUs they like. Everything is written below one folder, so that several clusters can be up at once.

    settings -> configuration files -> servers, kept as children of this process -> nodes idle -> stop() kills them

The settings are those of Slurm 22.05, as Debian 12 ships it.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

LIBC = ctypes.CDLL(None)
CGROUPS = [Path("/sys/fs/cgroup/freezer"), Path("/sys/fs/cgroup/memory")]
PROGRAMS = ["munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "sinfo", "scontrol", "scancel"]
ACCOUNTING_PROGRAMS = ["sacct", "sacctmgr", "slurmdbd", "mariadbd", "mariadb-install-db", "mariadb"]
INSTALL = "apt-get install -y --no-install-recommends munge slurm-client slurmctld slurmd"
INSTALL_ACCOUNTING = f"{INSTALL} slurmdbd slurm-wlm-mysql-plugin mariadb-server-core mariadb-client-core"


def missing(accounting: bool = False) -> list[str]:
    """What this machine lacks to run a cluster: programs, or "root". Empty if it can."""
    programs = PROGRAMS + (ACCOUNTING_PROGRAMS if accounting else [])
    return [name for name in programs if shutil.which(name) is None] + (["root"] if os.geteuid() else [])


class Cluster:
    """A real Slurm on the loopback address; `with Cluster() as cluster` starts and ends it.

    `asks_first`: a job that is preempted gets the signal it asked for; else, as by default, TERM to its steps alone.
    `cpus`, `memory_mb` and `gpus` are per node, `min_job_age` (seconds) is how long squeue remembers a job that ended,
    and `prefix` begins the names of the nodes. Those name cgroups of this machine: clusters that are up at once need
    different prefixes. A `folder` that is given must be empty and one that all may enter, and stays; otherwise the
    cluster makes one, and removes it when it stops.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        nodes: int = 2,
        cpus: int = 4,
        memory_mb: int = 4000,
        gpus: int = 0,
        accounting: bool = False,
        min_job_age: int = 300,
        max_array_size: int = 1001,
        asks_first: bool = True,
        prefix: str = "n",
    ) -> None:
        self.temporary = folder is None
        # not a folder of pytest: munged refuses one that only its owner may enter
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-")) if folder is None else folder
        self.nodes = [f"{prefix}{i}" for i in range(1, nodes + 1)]
        self.cpus, self.memory_mb, self.gpus, self.accounting = cpus, memory_mb, gpus, accounting
        self.min_job_age, self.max_array_size, self.asks_first = min_job_age, max_array_size, asks_first
        self.limits_memory = _can_make_cgroups()
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self.servers: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when every node is idle; a RuntimeError ends with what the servers wrote."""
        try:
            self._configure()
            munge = ["--foreground", f"--socket={self.folder}/munge", f"--key-file={self.folder}/munge.key"]
            munge += [f"--{name}-file={self.folder}/munge.{name}" for name in ("pid", "seed")]
            self._serve("munged", *munge, f"--log-file={self.folder}/log/munged.log")
            self._wait("munged has no socket", (self.folder / "munge").exists)
            if self.accounting:
                self._start_accounting()
            self._serve("slurmctld", "-D")
            for node in self.nodes:
                self._serve("slurmd", "-D", "-N", node, name=node)
            self._wait("nodes are not idle", lambda: self._states() == dict.fromkeys(self.nodes, "idle"))
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends this cluster's servers and jobs, and nothing else. Nothing of it is worth a graceful end."""
        for name in reversed(list(self.servers)):
            self._kill(name)
        if self.temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def call(self, *command: object, check: bool = True, timeout: float = 60) -> str:
        """What a command prints when it talks to this cluster; a RuntimeError with its complaint if it fails."""
        words = [str(word) for word in command]
        result = subprocess.run(
            words, env=_without_job() | self.environment, text=True, capture_output=True, timeout=timeout
        )
        if check and result.returncode:
            raise RuntimeError(f"{' '.join(words)} exited {result.returncode}: {result.stdout}{result.stderr}")
        return result.stdout

    def fail_node(self, name: str) -> None:
        """As if the machine had died. Its jobs are requeued at once, not after the minutes of SlurmdTimeout."""
        self._kill(name)
        self.call("scontrol", "update", f"nodename={name}", "state=down", "reason=failed by a test")

    def heal_node(self, name: str) -> None:
        """Starts a failed node again; returns when it takes jobs, which waiting ones may have begun to use."""
        self._serve("slurmd", "-D", "-N", name, name=name)
        # ReturnToService: a node that was down serves again as soon as its slurmd registers
        self._wait(f"{name} does not come back", lambda: self._states()[name] in ("idle", "mix", "alloc"))

    def reset(self) -> None:
        """As after start(): no jobs are running or waiting, and all nodes are idle."""
        for name in [name for name in self.nodes if name not in self.servers]:
            self.heal_node(name)
        self.call("scancel", "--user=root")
        self._wait("jobs do not end", lambda: not self.call("squeue", "--noheader"))
        self._wait("nodes are not idle", lambda: set(self._states().values()) == {"idle"})

    def _states(self) -> dict[str, str]:
        """Node -> its state as sinfo abbreviates it; `*` after it says that its slurmd is silent."""
        lines = self.call("sinfo", "--noheader", "-N", "-p", "main", "-o", "%N %t", check=False).splitlines()
        return dict.fromkeys(self.nodes, "unknown") | dict(line.split() for line in lines)

    def _serve(self, program: str, *arguments: str, name: str = "") -> None:
        """Starts a server in the foreground, so that it is our child: no pid file that a later process could match."""
        with (self.folder / "log" / f"{name or program}.out").open("a") as output:
            self.servers[name or program] = subprocess.Popen(
                [program, *arguments],
                env=_without_job() | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_keep_descendants,
            )

    def _wait(self, complaint: str, done: Callable[[], bool], timeout: float = 30) -> None:
        end = time.monotonic() + timeout
        while not done():
            dead = [name for name, server in self.servers.items() if server.poll() is not None]
            if dead or time.monotonic() > end:
                logs = {path.name: path.read_text(errors="replace") for path in sorted(self.folder.glob("log/*"))}
                tails = [f"--- {name}\n" + "\n".join(text.splitlines()[-15:]) for name, text in logs.items() if text]
                why = f"{' and '.join(dead)} ended" if dead else f"waited {timeout:g} s"
                raise RuntimeError("\n".join([f"{complaint}: {why}", *tails]))
            time.sleep(0.05)

    def _kill(self, name: str) -> None:
        """Kills a server with all that it started, which its orphans cannot leave while it is only stopped."""
        server = self.servers.pop(name)
        if server.poll() is None:
            server.send_signal(signal.SIGSTOP)
            while below := descendants(server.pid):
                for pid in below:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(0.01)
            server.kill()
            server.wait()
        for hierarchy in CGROUPS:
            _remove_cgroups(hierarchy / f"slurm_{name}")

    def _configure(self) -> None:
        """Writes what the servers read, with ports that are free now."""
        for node in self.nodes:
            (self.folder / "spool" / node).mkdir(parents=True)
        (self.folder / "log").mkdir()
        self.folder.chmod(0o755)
        _write_private(self.folder / "munge.key", os.urandom(1024))
        (self.folder / "plugstack.conf").touch()
        controller, self.database, accounts, *nodes = _free_ports(3 + len(self.nodes))
        (self.folder / "cgroup.conf").write_text(CGROUP)
        gpus = [self.folder / f"nvidia{i}" for i in range(self.gpus)]
        for device in gpus:
            os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))  # /dev/null by another name: files are refused
        (self.folder / "gres.conf").write_text("".join(f"Name=gpu File={device}\n" for device in gpus))
        lines = [SLURM.format(folder=self.folder, port=controller, memory_per_cpu=self.memory_mb // self.cpus)]
        lines += [f"MinJobAge={self.min_job_age}", f"MaxArraySize={self.max_array_size}"]
        lines += ["SlurmctldParameters=preempt_send_user_signal"] if self.asks_first else []
        lines += [LIMITED if self.limits_memory else UNLIMITED]
        if self.accounting:
            lines += [ACCOUNTED.format(folder=self.folder, port=accounts)]
            text = SLURMDBD.format(folder=self.folder, port=accounts, database=self.database)
            _write_private(self.folder / "slurmdbd.conf", text.encode())
        resources = f"CPUs={self.cpus} RealMemory={self.memory_mb}"
        if gpus:
            lines += ["GresTypes=gpu"]
            resources += f" Gres=gpu:{self.gpus}"
        for node, port in zip(self.nodes, nodes, strict=True):
            lines += [f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} {resources}"]
        lines += [PARTITIONS.format(grace=5 if self.asks_first else 30)]
        (self.folder / "slurm.conf").write_text("\n".join(lines))

    def _start_accounting(self) -> None:
        """sacct asks slurmdbd, which keeps what slurmctld tells it in mariadbd."""
        files, log, sock = self.folder / "mysql", self.folder / "log", self.folder / "mysql.socket"
        install = ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={files}", "--skip-test-db"]
        self.call(*install, "--auth-root-authentication-method=normal", "--skip-name-resolve")
        database = ["--no-defaults", "--user=root", f"--datadir={files}", f"--socket={sock}", "--skip-name-resolve"]
        database += ["--bind-address=127.0.0.1", f"--port={self.database}", f"--log-error={log}/mariadbd.log"]
        # slurmdbd complains about a shorter wait; the others make it light, and durable enough for a test
        database += [
            "--innodb-lock-wait-timeout=900",
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-log-file-size=16M",
        ]
        self._serve("mariadbd", *database, f"--pid-file={self.folder}/mariadbd.pid")
        client = ["mariadb", "--no-defaults", f"--socket={sock}", "--silent", "--execute"]
        self._wait("mariadbd does not answer", lambda: "1" in self.call(*client, "select 1", check=False))
        user = "slurm@'127.0.0.1'"
        self.call(*client, f"create user {user} identified by 'test'; grant all on slurm_acct_db.* to {user};")
        self._serve("slurmdbd", "-D")
        # a cluster is known once it is added; slurmctld would try only every few seconds
        add = ["sacctmgr", "--immediate", "--quiet", "add", "cluster", "test"]
        show = ["sacctmgr", "--noheader", "--parsable2", "list", "cluster", "format=cluster"]

        def known() -> bool:
            self.call(*add, check=False)
            return "test" in self.call(*show, check=False)

        self._wait("slurmdbd does not answer", known)


SLURM = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
# a requeued job waits until its first credential has expired: 120 s unless told
AuthInfo=socket={folder}/munge,cred_expire=5
CredType=cred/munge
# nobody else on the network may talk to a cluster that runs commands as root
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/%n.log
PlugStackConfig={folder}/plugstack.conf
MailProg=/bin/true
MpiDefault=none
# the limits of the shell that runs the tests are not those of a job
PropagateResourceLimits=NONE
# a node may claim more than this machine has
SlurmdParameters=config_overrides
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU={memory_per_cpu}
# jobs start in about a second instead of up to a minute
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
KillWait=2
JobRequeue=1
# a job of `low` is warned, and GraceTime later is requeued, when one of `high` wants its place
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
"""

PARTITIONS = """\
PartitionName=main Nodes=ALL MaxTime=INFINITE PriorityTier=10 Default=YES
PartitionName=low Nodes=ALL MaxTime=INFINITE PriorityTier=1 GraceTime={grace}
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=20 PreemptMode=OFF
"""

CGROUP = """\
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
CgroupAutomount=no
ConstrainRAMSpace=yes
"""

LIMITED = """\
# a job above its --mem is OUT_OF_MEMORY, and one that ends takes all of its processes with it
ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1"""

UNLIMITED = """\
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none"""

ACCOUNTED = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
# without it the clients wait for a munged of the system
AccountingStoragePass={folder}/munge"""

SLURMDBD = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
CommunicationParameters=NoInAddrAny
PidFile={folder}/slurmdbd.pid
LogFile={folder}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser=slurm
StoragePass=test
StorageLoc=slurm_acct_db
"""


def _without_job() -> dict[str, str]:
    """This environment without what Slurm sets in a job: the tests may run in one of a real cluster."""
    return {
        key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH", "SRUN", "SQUEUE"))
    }


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in sockets]
    finally:
        for probe in sockets:
            probe.close()


def _write_private(path: Path, content: bytes) -> None:
    """Keys and passwords are refused when others can read them."""
    path.touch(mode=0o600)
    path.write_bytes(content)


def _can_make_cgroups() -> bool:
    """Whether this machine has the first version of cgroups, and lets us use it."""
    probes = [hierarchy / f"probe_{os.getpid()}" for hierarchy in CGROUPS]
    try:
        for probe in probes:
            probe.mkdir()
            probe.rmdir()
    except OSError:
        return False
    return True


def _keep_descendants() -> None:
    """In a server, before it starts: what it leaves without a parent becomes its child, and it dies with the tests."""
    LIBC.prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
    LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _remove_cgroups(path: Path) -> None:
    """A cgroup can be removed as soon as the last killed process has left it."""
    for _ in range(100):
        for folder, _, _ in os.walk(path, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        if not path.exists():
            return
        time.sleep(0.02)


def descendants(pid: int) -> list[int]:
    """Processes below one, parents before their children; zombies are as good as gone."""
    children: dict[int, list[int]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may have ended
            state, parent = (process / "stat").read_text().rpartition(")")[2].split()[:2]
            if state not in "ZX":
                children.setdefault(int(parent), []).append(int(process.name))
    found = [pid]
    for parent_pid in found:
        found += children.get(parent_pid, [])
    return found[1:]
