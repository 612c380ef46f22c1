//go:build linux

package microvm

// systemdPackages are systemd and the libraries that it and systemctl load.
// What else its packages depend on serves units that the guest does not run.
var systemdPackages = []string{
	"systemd", "libsystemd-shared", "libacl1", "libapparmor1", "libaudit1", "libblkid1", "libcap-ng0", "libcap2",
	"libcrypt1", "libgcrypt20", "libgpg-error0", "libip4tc2", "libkmod2", "liblz4-1", "liblzma5", "libmount1",
	"libpam0g", "libpcre2-8-0", "libseccomp2", "libselinux1", "libssl3", "libzstd1",
}

// systemdArgs boot straight into our unit: no journal, no udev, no D-Bus daemon.
// Runtimes talk to systemd on its own socket, /run/systemd/private.
var systemdArgs = []string{
	"systemd.unit=microvm.service",
	"systemd.log_target=console", "systemd.log_level=warning", "systemd.show_status=false",
}

const systemdUnitPath = "etc/systemd/system/microvm.service"

// systemdUnit gives the commands what containerd.service gives containerd.
const systemdUnit = `[Unit]
Description=Commands of the microVM
DefaultDependencies=no
FailureAction=poweroff-immediate
SuccessAction=poweroff-immediate

[Service]
Type=exec
ExecStart=/init run
StandardOutput=tty
StandardError=tty
Delegate=yes
KillMode=process
LimitNOFILE=1048576
LimitNPROC=infinity
TasksMax=infinity
`
