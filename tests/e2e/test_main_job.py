"""The main job, point by point, as `make demo` shows it. The tests build on each other in this order."""

from opendpu.lab.scenario.main_job import CLOUD_INIT, SSH, MainJob


def test_both_servers_boot_once_from_their_clones(job: MainJob) -> None:
    for server in job.servers:
        names = [stage["name"] for stage in job.report.servers[server.name]["stages"]]
        for expected in (
            "volume-cloned",
            "disk-ready",
            "nic-ready",
            "first-disk-read",
            "first-packet",
            SSH,
            CLOUD_INIT,
        ):
            assert expected in names
        assert job.report.servers[server.name]["control_plane_s"] > 0
        console = server.console_log.read_text(errors="replace")
        assert console.count("Linux version") <= 1, "one boot"
        assert "PXE" not in console


def test_network(job: MainJob) -> None:
    job.prove_network()


def test_hotplug(job: MainJob) -> None:
    job.prove_hotplug()


def test_recovery(job: MainJob) -> None:
    job.prove_recovery()


def test_undeploy_leaves_nothing(job: MainJob) -> None:
    job.prove_undeploy()
    assert job.report.ok
