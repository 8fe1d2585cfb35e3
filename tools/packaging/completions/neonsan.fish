# SPDX-License-Identifier: GPL-2.0 OR MIT
# Completion of neonsan, neonsan-attach and neonsan-detach for fish, as
# /usr/share/fish/vendor_completions.d/neonsan.fish. What can follow says the command itself.

function __neonsan_complete
    set -l current (commandline --current-token)
    set -l found (command neonsan __complete (commandline --tokenize --cut-at-cursor --current-process) "$current" 2>/dev/null)
    if string match --quiet --regex '^:files' -- $found[1]
        __fish_complete_path "$current"
    else
        printf '%s\n' $found
    end
end

for program in neonsan neonsan-attach neonsan-detach
    complete --command $program --no-files --arguments '(__neonsan_complete)'
end
