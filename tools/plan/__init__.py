"""Which GPUs hold a model, and what is the smallest change where one does not: `ci/just plan MODEL [gpu=ADA_24] [...]`.

    listing      a checkpoint's config.json, and the names and sizes of its files, from a directory or the hub; nothing else is read
    parameters   the size of the weights from config.json alone
    fit          the model against a pool of GPUs: pure, with the worker's own flags and its own estimate
    advise       the smallest change that would fit
    report       the plan for one pool; `pool_table` for all of them, `prices` from RunPod's catalog; `paste` the commands that carry it out

Formulae, each where it is from:

    weights      the sizes of the files, with the quantization's bits for all but the embeddings   `checkpoint/size.py`
    cache        2 x layers x key/value heads x width x bytes for each token      FastDeploy, GPUModelRunner.cal_theortical_kvcache
    left         share of the memory - weights - activations and runtime          FastDeploy, GpuWorker.determine_available_memory
    flags        length, tokens of a step, GPUs that share the model              `handler/fastdeploy/start.py`, as at a worker's start
    disk         weights and 10 GB, a tenth left free                             the RunPod SDK's check of a worker's disk
    times        200 to 400 MB/s, and 22 to 38 s beside the weights               RunPod's network volumes; starts of FastDeploy 2.3 to 2.6
"""
