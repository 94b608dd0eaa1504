"""The names of the files that Hogwear writes."""

# In the model folder
CHECKPOINT, PREVIOUS_CHECKPOINT = "checkpoint.pt", "checkpoint.previous.pt"  # the last two saved
SPLIT = "split.json"  # which photos belong to train, val and test
METRICS = "metrics.csv"  # one row per epoch
EVALUATION, REPORT = "eval_results.json", "report.html"
DOCTOR_REPORT, DOCTOR_PAGE = "doctor.json", "doctor.html"
ONNX_MODEL, MODEL_CARD = "model.onnx", "MODEL_CARD.md"

# In the responses folder
RESULTS = "results"  # the folder of the pictures
CONTACT_SHEET = "contact_sheet"  # .png; with a number where there are several
SORTED = "sorted"  # the folder of the sorted photos
NEXT, NEXT_TABLE = "next", "next.csv"  # photos to label: sheets (.png, as above), and a table
PREDICTIONS, PREDICTIONS_TABLE = "predictions.json", "predictions.csv"
MANIFEST = ".hogwear.sha256"  # the files that infer has written there
