"""Bytes that programs send and move: hand-written HLO, and compiled programs on 8 devices whose bytes are known in closed form."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from ilya_jax.parallel import collectives, hlo

# Two loops, one within the other: the outer one's length is noted by XLA (5), the inner one's must be read off its condition (3).
LOOPS = """HloModule hand, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inner_condition (p: (s32[], f32[16,8])) -> pred[] {
  %p = (s32[]{:T(128)}, f32[16,8]{1,0:T(8,128)}) parameter(0)
  %end = s32[]{:T(128)} constant(7)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %end), direction=LT, metadata={op_name="while/cond/lt"}
}

%inner_body (q: (s32[], f32[16,8])) -> (s32[], f32[16,8]) {
  %q = (s32[]{:T(128)}, f32[16,8]{1,0:T(8,128)}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%j, %two)
  %x = f32[16,8]{1,0:T(8,128)} get-tuple-element(%q), index=1
  %summed = f32[16,8]{1,0:T(8,128)} all-reduce(%x), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %t = (s32[]{:T(128)}, /*index=1*/f32[16,8]{1,0:T(8,128)}) tuple(%next, %summed)
}

%outer_condition (p: (s32[], f32[16,8])) -> pred[] {
  %p = (s32[], f32[16,8]) parameter(0)
  ROOT %any = pred[] custom-call(%p), custom_call_target="anything"
}

%outer_body (q: (s32[], f32[16,8])) -> (s32[], f32[16,8]) {
  %q = (s32[], f32[16,8]) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %x = f32[16,8] get-tuple-element(%q), index=1
  %one = s32[] constant(1)
  %start = s32[] copy(%one)
  %sent = (f32[16,8], f32[16,8], u32[], u32[]) collective-permute-start(%x), channel_id=2, source_target_pairs={{0,1},{1,0}}
  %y = f32[16,8] collective-permute-done(%sent)
  %state = (s32[], f32[16,8]) tuple(%start, %y)
  ROOT %w = (s32[], f32[16,8]) while(%state), condition=%inner_condition, body=%inner_body
}

ENTRY %main (x: f32[16,8]) -> (s32[], f32[16,8]) {
  %x = f32[16,8] parameter(0)
  %zero = s32[] constant(0)
  %state = (s32[], f32[16,8]) tuple(%zero, %x)
  ROOT %w = (s32[], f32[16,8]) while(%state), condition=%outer_condition, body=%outer_body, backend_config={"known_trip_count":{"n":"5"}}
}
"""


def sent(text, devices=8):
  return {k: v for k, v in collectives.by_kind(collectives.sent(hlo.parse(text), devices=devices)).items() if v}


def one(instruction, *, devices=8):
  """Bytes that a program of one instruction on f32[16,8] sends."""
  return sent(
    f"ENTRY %main (x: f32[16,8]) -> f32[16,8] {{\n  %x = f32[16,8] parameter(0)\n  ROOT {instruction}\n}}\n", devices
  )


def test_loops_count_as_often_as_they_run():
  array = 16 * 8 * 4
  assert sent(LOOPS) == {"all-reduce": 5 * 3 * 2 * 3 / 4 * array, "collective-permute": 5 * array}


@pytest.mark.parametrize(
  ("instruction", "expected"),
  {
    "all-gather": ("%g = f32[64,8] all-gather(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}", 3 * 512),
    "started": ("%g = (f32[16,8], f32[32,8]) all-gather-start(%x), replica_groups=[4,2]<=[8], dimensions={0}", 512),
    "several": (
      "%g = ((f32[16,8], f32[16,8]), (f32[32,8], f32[32,8])) all-gather-start(%x, %x), replica_groups=[4,2]<=[8]", 1024,
    ),
    "reduce-scatter": ("%g = f32[2,8] reduce-scatter(%x), replica_groups={}, dimensions={0}, to_apply=%add", 7 * 64),
    "all-to-all": ("%g = (f32[8,8], f32[8,8]) all-to-all(%x, %x), replica_groups=[4,2]<=[8]", 256),
    "bfloat16": ("%g = bf16[16,8] all-reduce(%x), replica_groups=[4,2]<=[8], to_apply=%add", 256),
    "nobody else": ("%g = f32[16,8] all-reduce(%x), replica_groups=[8,1]<=[8], to_apply=%add", 0),
    "to itself": ("%g = f32[16,8] collective-permute(%x), source_target_pairs={{0,0},{1,1}}", 0),
  }.values(),
)  # fmt: skip
def test_bytes_of_one_operation(instruction, expected):
  assert sum(one(instruction).values()) == expected


def test_groups_in_all_ways_of_writing_them():
  groups = lambda text: collectives.replica_groups(f"channel_id=1, replica_groups={text}, more=1", devices=8)  # noqa: E731
  assert groups("{{0,2},{1,3}}") == [(0, 2), (1, 3)]
  assert groups("{}") == [tuple(range(8))]
  assert groups("[2,4]<=[8]") == [(0, 1, 2, 3), (4, 5, 6, 7)]
  assert groups("[4,2]<=[2,4]T(1,0)") == [(0, 4), (1, 5), (2, 6), (3, 7)]
  assert groups("mesh['a'=2,'b'=4] {'b'}") == [(0, 1, 2, 3), (4, 5, 6, 7)]
  assert groups("mesh['a'=2,'b'=4] {'a'}") == [(0, 4), (1, 5), (2, 6), (3, 7)]
  assert groups("mesh['a'=2,'b'=2,'c'=2] {'a', 'c'}") == [(0, 1, 4, 5), (2, 3, 6, 7)]
  assert groups("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}") == [(0, 2), (1, 3)]
  assert groups("mesh['a'=8] {'a':(2)4}") == [(0, 1, 2, 3), (4, 5, 6, 7)]
  assert groups("mesh['a'=8] {'a':(1)2}") == [(0, 4), (1, 5), (2, 6), (3, 7)]


def test_an_operation_cut_into_pieces_counts_once_and_a_fused_scatter_is_one():
  config = 'backend_config={{"async_collective_fusion_config":{{"flag_start":"{0}","flag_end":"{0}"}}}}'
  gather = "all-gather(%p), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}, "
  pieces = "".join(
    f"%piece{k} (p: f32[16,8]) -> f32[128,8] {{\n  %p = f32[16,8] parameter(0)\n"
    f"  ROOT %g = f32[128,8] {gather}{config.format(flag)}\n}}\n\n"
    for k, flag in enumerate((-1, 2, 2))
  )  # fmt: skip
  scatter = (
    "%all-reduce-scatter.1 (p: f32[16,8]) -> f32[2,8] {\n  %p = f32[16,8] parameter(0)\n"
    "  %r = f32[16,8] all-reduce(%p), replica_groups=[1,8]<=[8], to_apply=%add\n"
    "  ROOT %s = f32[2,8] dynamic-slice(%r), dynamic_slice_sizes={2,8}\n}\n\n"
  )
  calls = "".join(f"  %f{k} = f32[128,8] fusion(%x), kind=kCustom, calls=%piece{k}\n" for k in range(3))
  main = f"ENTRY %main (x: f32[16,8]) -> f32[2,8] {{\n  %x = f32[16,8] parameter(0)\n{calls}"
  main += "  ROOT %s = f32[2,8] fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1\n}\n"
  assert sent(pieces + scatter + main) == {"all-gather": 7 * 512, "reduce-scatter": 7 / 8 * 512}


def test_of_the_branches_of_a_conditional_the_largest_counts():
  branch = lambda name, rows: (  # noqa: E731
    f"%{name} (p: f32[16,8]) -> f32[16,8] {{\n  %p = f32[16,8] parameter(0)\n"
    f"  ROOT %r = f32[{rows},8] all-reduce(%p), replica_groups=[1,2]<=[2], to_apply=%add\n}}\n\n"
  )
  main = "ENTRY %main (x: f32[16,8]) -> f32[16,8] {\n  %x = f32[16,8] parameter(0)\n  %i = s32[] constant(0)\n"
  main += "  ROOT %c = f32[16,8] conditional(%i, %x, %x), branch_computations={%small, %large}\n}\n"
  assert sent(branch("small", 4) + branch("large", 16) + main, devices=2) == {"all-reduce": 512}


def test_memory_traffic_counts_slices_updates_and_main_memory_alone():
  fused = (
    "%reads_a_slice (p: f32[10,16], i: s32[]) -> f32[1,16] {\n  %p = f32[10,16] parameter(0)\n  %i = s32[] parameter(1)\n"
    "  ROOT %s = f32[1,16] dynamic-slice(%p, %i, %i), dynamic_slice_sizes={1,16}\n}\n\n"
    "%updates (p: f32[10,16], u: f32[1,16], i: s32[]) -> f32[10,16] {\n  %p = f32[10,16] parameter(0)\n"
    "  %u = f32[1,16] parameter(1)\n  %i = s32[] parameter(2)\n"
    "  ROOT %d = f32[10,16] dynamic-update-slice(%p, %u, %i, %i)\n}\n\n"
  )
  main = (
    "ENTRY %main (x: f32[10,16], i: s32[]) -> f32[10,16] {\n  %x = f32[10,16] parameter(0)\n  %i = s32[] parameter(1)\n"
    "  %row = f32[1,16] fusion(%x, %i), kind=kLoop, calls=%reads_a_slice\n"  # reads 64 and an index, writes 64
    "  %near = f32[1,16]{1,0:T(8,128)S(1)} negate(%row)\n"  # reads 64, writes to VMEM
    "  ROOT %y = f32[10,16] fusion(%x, %near, %i), kind=kLoop, calls=%updates\n}\n"  # writes 64, reads an index
  )
  assert hlo.memory_traffic(hlo.parse(fused + main)) == 64 + 4 + 64 + 64 + 64 + 4


def test_a_compiled_program_of_eight_devices_sends_what_its_shapes_say():
  mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)

  def program(x):  # [8, 64] on each device
    def body(x, _):
      gathered = lax.all_gather(x, "a", tiled=True)  # [32, 64]
      back = lax.psum_scatter(gathered * 2, "a", tiled=True)  # [8, 64]
      turned = lax.all_to_all(back, "b", split_axis=0, concat_axis=0, tiled=True)
      moved = lax.ppermute(turned, "a", [(k, (k + 1) % 4) for k in range(4)])
      return jnp.sin(moved), None

    x, _ = lax.scan(body, x, None, length=5)
    return lax.psum(x, ("a", "b"))

  mapped = jax.jit(jax.shard_map(program, mesh=mesh, in_specs=PartitionSpec(("a", "b")), out_specs=PartitionSpec()))
  text = mapped.lower(jax.ShapeDtypeStruct((64, 64), jnp.float32)).compile().as_text()
  array = 8 * 64 * 4
  assert sent(text) == {
    "all-gather": 5 * 3 / 4 * 4 * array, "reduce-scatter": 5 * 3 / 4 * 4 * array, "all-to-all": 5 / 2 * array,
    "collective-permute": 5 * array, "all-reduce": 2 * 7 / 8 * array,
  }  # fmt: skip
  assert re.search("known_trip_count", text)
