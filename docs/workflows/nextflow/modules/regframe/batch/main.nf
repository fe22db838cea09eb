process REGFRAME_BATCH {
    tag "$meta.id"
    label 'process_high'

    conda "${moduleDir}/environment.yml"
    container "${params.regframe_container ?: 'regframe:0.1.0'}"

    input:
    tuple val(meta), path(manifest), path(files)

    output:
    tuple val(meta), path("${prefix}"), emit: results
    tuple val(meta), path("${prefix}/summary.csv"), emit: table
    tuple val(meta), path("${prefix}/summary.html"), emit: report
    path "versions.yml", emit: versions

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    def memory = task.memory ? "--memory ${Math.max(1, (task.memory.toMega() * 0.9 / task.cpus) as int)}MiB" : ''
    // exit code 3 is a job without a map, or one with the verdict fail: it ends the process, unless ext.accept = 'fail'
    def accepted = task.ext.accept == 'fail' ? 3 : 0
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    export MPLCONFIGDIR=\$PWD/.matplotlib

    code=0
    regframe batch ${manifest} -o ${prefix} --workers ${task.cpus} --threads 1 ${memory} ${args} || code=\$?
    [ \$code -eq 0 ] || [ \$code -eq ${accepted} ] || exit \$code

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        regframe: \$(regframe --version | sed 's/^regframe //')
    END_VERSIONS
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    mkdir -p ${prefix}
    touch ${prefix}/summary.csv ${prefix}/summary.html

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        regframe: \$(regframe --version | sed 's/^regframe //')
    END_VERSIONS
    """
}
