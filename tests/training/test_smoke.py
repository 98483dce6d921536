from pathlib import Path
from fluxtune.config.schema import Config
from fluxtune.training.run import train
def test_smoke(tiny_flux, pictures, tmp_path):
    c=Config.model_validate({"model":{"base":str(tiny_flux)},"dataset":{"folders":[{"path":str(pictures)}],"resolution":[128],"trigger":"zorvex","class_word":"critter"},
      "training":{"steps":4,"batch_size":2,"precision":"fp32","optimizer":"adamw","preservation":{"method":"output"}},"memory":{"base_precision":"fp32","text_precision":"fp32"},"previews":{"every":2,"steps":2},"checkpoints":{"every":2}})
    r=train(c,output=tmp_path/"run",on_event=print)
    print(r)
    assert 0
