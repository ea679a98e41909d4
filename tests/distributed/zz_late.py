import sys,time,contextlib,argparse
sys.argv=[a for a in sys.argv if not a.startswith('--local_rank')]
import tests.distributed.engine_worker as w
from trainer import engine as E
world=w.initialize(8)
mode=sys.argv[1]
e=w.build(world,int(sys.argv[2]))
t=time.time()
try:
    if mode=='hooks':
        E._without_hooks=lambda m,o: contextlib.nullcontext()
        b=w.step_batches(7,rank=0,world_size=1,micro_visits=8)[0]
        import torch
        with e.evaluation_module() as m, torch.inference_mode():
            for _ in range(1+2*world.rank): m(b)
        w.train_step(e,world,0)
    else:
        if world.rank==1: time.sleep(25)
        w.train_step(e,world,0)
    print('fine',world.rank)
except BaseException as x:
    print(world.rank,type(x),str(x)[:120],round(time.time()-t,1),flush=True)
    raise SystemExit(3)
