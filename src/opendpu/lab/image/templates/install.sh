# Runs inside the new system.
printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d # no daemon starts during the build
chmod 755 /usr/sbin/policy-rc.d
apt-get -q update
# The build's files need no fsync each: a build that is cut short is thrown away.
apt-get -qy --no-install-recommends -o Dpkg::Options::=--force-unsafe-io -o Dpkg::Use-Pty=0 install @PACKAGES@
rm /usr/sbin/policy-rc.d
apt-get clean
rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/dpkg.log /var/log/alternatives.log
