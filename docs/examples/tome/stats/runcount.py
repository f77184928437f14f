# stats/runcount.py
from tome.command import tome_command
from tome.api.output import TomeOutput
import json
import os

COUNTER_FILENAME = "run_counter.json"

@tome_command()
def runcount(tome_api, parser, *args):
    """Counts times it has been run."""
    parsed_args = parser.parse_args(*args) # Process any potential future args
    output = TomeOutput(stdout=True)

    # Define a path for this command's data within the tome store
    command_storage_dir = os.path.join(tome_api.store.folder, "stats_runcount")
    os.makedirs(command_storage_dir, exist_ok=True) # Ensure the directory exists
    counter_file_path = os.path.join(command_storage_dir, COUNTER_FILENAME)

    count = 0
    # Load existing count
    if os.path.exists(counter_file_path):
        try:
            with open(counter_file_path, 'r') as f:
                data = json.load(f)
                count = data.get("run_count", 0)
        except (IOError, json.JSONDecodeError):
            # If file is corrupt or unreadable, start count from 0
            TomeOutput().warning(f"Could not read counter file, resetting count.")
            count = 0

    # Increment count
    count += 1

    # Save new count
    try:
        with open(counter_file_path, 'w') as f:
            json.dump({"run_count": count}, f)
        output.info(f"This command has been run {count} time(s).")
        output.info(f"(Counter data stored in: {counter_file_path})")
    except IOError as e:
        TomeOutput().error(f"Could not save run count: {e}")
        output.info(f"Current run (not saved) would be #{count}.")
