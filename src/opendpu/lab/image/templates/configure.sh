# Runs inside the new system.
mask() { for unit; do ln -sf /dev/null "/etc/systemd/system/$unit"; done; }

# The stages of cloud-init run in one process (cloud-init-stages.service) instead of four units and a generator.
mask cloud-init-local.service cloud-init.service cloud-config.service cloud-final.service cloud-init-hotplugd.service \
    cloud-init-hotplugd.socket
mkdir -p /etc/systemd/system-generators
for generator in cloud-init-generator systemd-cryptsetup-generator systemd-gpt-auto-generator \
    systemd-hibernate-resume-generator systemd-integritysetup-generator systemd-rc-local-generator \
    systemd-system-update-generator systemd-sysv-generator systemd-veritysetup-generator; do
    ln -sf /dev/null "/etc/systemd/system-generators/$generator"
done
rm -f /usr/lib/udev/rules.d/10-cloud-init-hook-hotplug.rules

# Units that a server with volumes and NICs from a DPU does not need.
mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
    systemd-pstore.service systemd-binfmt.service systemd-firstboot.service systemd-update-utmp.service \
    systemd-update-utmp-runlevel.service systemd-pcrphase.service systemd-pcrphase-sysinit.service \
    systemd-networkd-wait-online.service systemd-network-generator.service systemd-sysusers.service \
    systemd-hwdb-update.service systemd-journal-flush.service \
    systemd-machine-id-commit.service systemd-ask-password-wall.path systemd-ask-password-console.path \
    proc-sys-fs-binfmt_misc.automount sys-fs-fuse-connections.mount sys-kernel-config.mount sys-kernel-debug.mount \
    sys-kernel-tracing.mount dev-hugepages.mount dev-mqueue.mount modprobe@.service remote-fs.target \
    cryptsetup.target integritysetup.target veritysetup.target getty-static.service

# Names are looked up by programs that people start: the resolver may come after sshd.
sed -e '/^Before=/d' -e 's/^After=.*/After=ssh.service/' -e 's/^WantedBy=.*/WantedBy=multi-user.target/' \
    /lib/systemd/system/systemd-resolved.service > /etc/systemd/system/systemd-resolved.service
systemctl --quiet disable systemd-resolved.service

systemctl --quiet enable systemd-networkd.service systemd-resolved.service cloud-init-stages.service ssh.service \
    serial-getty@ttyS0.service
systemctl --quiet disable getty@tty1.service

# cloud-init finds its default user already there, and has only the keys to add.
useradd --create-home --shell /bin/bash --comment Debian --groups adm,sudo debian
passwd --quiet --lock debian
printf 'debian ALL=(ALL) NOPASSWD:ALL\n' > /etc/sudoers.d/90-cloud-init-users
chmod 440 /etc/sudoers.d/90-cloud-init-users

# What is each server's own is made at its first boot. "uninitialized" would start systemd's first-boot presets.
rm -f /etc/ssh/ssh_host_* /var/lib/dbus/machine-id /etc/hostname
: > /etc/machine-id
ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
rm -rf /etc/update-motd.d/* /var/lib/cloud /var/log/cloud-init* /boot/initrd.img-*
