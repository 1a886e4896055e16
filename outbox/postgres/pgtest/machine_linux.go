package pgtest

import (
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"sync"
	"syscall"
)

// attributes are those of every process that is started: it does not run as root, which PostgreSQL
// refuses. Root of this machine is a common user in a user namespace; where none can be made, the
// system's user postgres takes its place. A session of its own keeps an interrupt of the tests from
// the servers, and the hangup that a process group with stopped processes gets when its parent
// ends.
var attributes = sync.OnceValue(func() syscall.SysProcAttr {
	plain := syscall.SysProcAttr{Setsid: true}
	if os.Getuid() != 0 {
		return plain
	}
	inNamespace := plain
	inNamespace.Cloneflags = syscall.CLONE_NEWUSER
	inNamespace.UidMappings = []syscall.SysProcIDMap{{ContainerID: 1000, HostID: os.Getuid(), Size: 1}}
	inNamespace.GidMappings = []syscall.SysProcIDMap{{ContainerID: 1000, HostID: os.Getgid(), Size: 1}}
	probe := exec.Command("/bin/sh", "-c", "true")
	probe.SysProcAttr = &inNamespace
	if probe.Run() == nil {
		return inNamespace
	}
	if uid, gid, err := postgresUser(); err == nil {
		plain.Credential = &syscall.Credential{Uid: uid, Gid: gid}
	}
	return plain
})

func postgresUser() (uid, gid uint32, err error) {
	u, err := user.Lookup("postgres")
	if err != nil {
		return 0, 0, err
	}
	id, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return 0, 0, err
	}
	group, err := strconv.ParseUint(u.Gid, 10, 32)
	return uint32(id), uint32(group), err
}

// unprivileged makes a command run as a user that PostgreSQL accepts.
func unprivileged(c *exec.Cmd) {
	attr := attributes()
	c.SysProcAttr = &attr
}

// giveAway gives a folder to the user as whom the commands run.
func giveAway(folder string) error {
	if c := attributes().Credential; c != nil {
		return os.Chown(folder, int(c.Uid), int(c.Gid))
	}
	return nil
}

// parent returns where the folders of servers are made: in PGTEST_FOLDER if the environment has it,
// as for a benchmark on a disk, or else in memory if there is room. A disk that is busy with
// something else would make each new database wait.
func parent() string {
	if folder := os.Getenv("PGTEST_FOLDER"); folder != "" {
		return folder
	}
	const memory, room = "/dev/shm", 1 << 30
	var fs syscall.Statfs_t
	if err := syscall.Statfs(memory, &fs); err != nil || fs.Bavail*uint64(fs.Bsize) < room {
		return os.TempDir()
	}
	return memory
}
