# SPDX-License-Identifier: GPL-2.0 OR MIT
# Completion of neonsan, neonsan-attach and neonsan-detach for bash, as
# /usr/share/bash-completion/completions/neonsan. What can follow says the command itself.

_neonsan() {
	local rest=${COMP_LINE:0:COMP_POINT} word i value words=() values=()
	# Bash cuts words at : and = as well; here only space is between two.
	for ((i = 0; i <= COMP_CWORD; i++)); do
		case $rest in
		[[:space:]]*) rest=${rest#"${rest%%[![:space:]]*}"} words+=('') ;;
		*) if [ $i -eq 0 ]; then words+=(''); fi ;;
		esac
		# Only as far as the cursor.
		word=${COMP_WORDS[i]} word=${rest:0:${#word}}
		rest=${rest:${#word}}
		words[${#words[@]} - 1]+=$word
	done
	word=${words[${#words[@]} - 1]}
	while IFS=$'\t' read -r value _; do
		values+=("$value")
	done < <(command neonsan __complete "${words[@]}" 2>/dev/null)
	if [ "${values[0]-}" = :files ]; then
		compopt -o filenames 2>/dev/null
		mapfile -t COMPREPLY < <(compgen -f -- "${COMP_WORDS[COMP_CWORD]#=}")
		return
	fi
	# What bash replaces begins behind the last : or =.
	local before=''
	case $word in
	*[:=]*) case $COMP_WORDBREAKS in *[:=]*) before=${word%"${word##*[:=]}"} ;; esac ;;
	esac
	COMPREPLY=()
	for value in ${values[@]+"${values[@]}"}; do
		case $value in
		# More of the word follows.
		*[/@=,]) compopt -o nospace 2>/dev/null ;;
		esac
		COMPREPLY+=("${value#"$before"}")
	done
}

complete -F _neonsan neonsan neonsan-attach neonsan-detach
