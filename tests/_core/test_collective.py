"""The group of processes that a launcher starts."""

from tests._parallel.launching import launched


def test_one_process_of_a_launcher_is_a_group_of_one(tmp_path):
    """`mlx.launch -n 1` names an empty file of hosts, which MLX refuses."""
    hosts, program = tmp_path / "hosts", tmp_path / "program.py"
    hosts.write_text("\n")
    program.write_text(
        "import mlx.core as mx, purestep as ps\n"
        "assert ps.data.for_rank([1]) == [1]\n"
        "print(mx.distributed.init().size())\n"
    )
    assert launched(program, 1, environment={"MLX_HOSTFILE": str(hosts)}) == ["1\n"]
