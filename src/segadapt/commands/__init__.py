"""The command line's commands: a module each, with `add_options` and `run`; here the list of them."""

# name -> one line of help; the module is the name with _ for - and space
COMMANDS = {
    "demo": "Train the rows of the paper's Table 2 on the bundled pair of street scenes.",
    "check-data": "Say what training will meet in the data: files, sizes, ids, classes, instances, banks.",
    "train": "Train one row of the method: source only, AdaBN, adversarial, SIM or target only.",
    "adapt": "The whole procedure: step 1, pseudo-labels, step 2, evaluation.",
    "ablate": "The rows of the paper's Tables 2 and 6 over seeds: tables, curves, pictures, a page.",
    "sweep": "Tables 3 and 4 of the paper, or of any other key: one row with several values of it, over seeds.",
    "compare": "Rows of any run folders in one table: paired differences, scores without labels.",
    "pseudo-label": "Label images with a model's confident predictions, Eq. (9).",
    "translate fit": "Train a generator that gives source images the target's style (CycleGAN).",
    "translate apply": "Write a folder of images in the style of another: fourier, lab, histogram or cyclegan.",
    "report": "One HTML page about run folders: scores, curves, pictures, confusions, pseudo-labels, configuration.",
    "evaluate": "Score a model on labelled images.",
    "predict": "Label images, folders and videos with a model.",
    "recalibrate": "Re-estimate a model's batch-norm statistics on unlabelled images (AdaBN).",
    "export": "Write a model as ONNX or torch.export program, checked against the model itself.",
    "completion": "Print a script that lets the Tab key of a shell know commands and options.",
    "weights": "List the public files of weights, or say what given files are. Nothing is downloaded.",
}
