"""Names that stand for what only the nodes know; each backend puts its own shell variables in their place."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nemo_run.shell import Expand, concat

_MACRO = re.compile(r"(\$\$)?\$\{(\w+_var)\}(_\d+)?")


@dataclass(frozen=True, kw_only=True)
class ExecutorMacros:
    """Texts for a script's arguments and for environment values.

    `f"$${ExecutorMacros.HEAD_NODE_IP_VAR}"` becomes the value that the variable has on the node, and the
    constant alone the variable's name.
    """

    HEAD_NODE_IP_VAR = "${head_node_ip_var}"
    NPROC_PER_NODE_VAR = "${nproc_per_node_var}"
    NUM_NODES_VAR = "${num_nodes_var}"
    NODE_RANK_VAR = "${node_rank_var}"
    HET_GROUP_HOST_VAR = "${het_group_host_var}"
    FT_LAUNCHER_CFG_PATH_VAR = "${ft_launcher_cfg_path_var}"

    #: The variables' names, of one backend.
    head_node_ip_var: str
    nproc_per_node_var: str
    num_nodes_var: str
    node_rank_var: str
    het_group_host_var: str
    ft_launcher_cfg_path_var: str = "FAULT_TOL_CFG_PATH"

    @staticmethod
    def group_host(index: int) -> str:
        """Stands for the first host of a heterogeneous job's component."""
        return f"$$${{het_group_host_var}}_{index}"

    def substitute(self, word: str) -> str:
        """A word with what the macros in it stand for: an `Expand` if that is the value of a variable."""
        if "${" not in word or isinstance(word, Expand):
            return word
        parts, at = [], 0
        for match in _MACRO.finditer(word):
            name = getattr(self, match[2], None)
            if not isinstance(name, str):
                continue
            of_group = match[2] == "het_group_host_var"
            name += (match[3] or "") if of_group else ""
            rest = "" if of_group else match[3] or ""
            parts += [word[at : match.start()], Expand(f"${{{name}}}") if match[1] else name, rest]
            at = match.end()
        return concat(*parts, word[at:]) if parts else word
